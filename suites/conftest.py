"""What the suites start from, besides the states of :mod:`fixtures.points`."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures import points, session
from fixtures.machines import Boot
from fixtures.points import TARGET, USER, answers_for
from fixtures.session import Session
from fixtures.states import ForkOf
from harness.catalog import Selection
from harness.keys import KeyPair
from harness.machine import Machine
from harness.profiles.base import Install
from harness.services import Ca, Registry, UpdateServer
from harness.spec import Disk
from harness.state import state


def target_disk(image: Selection, name: str = "target", serial: str = TARGET) -> Disk:
    """A blank disk of the size that the image asks for."""
    return Disk(name, size=image.image.machine.disk, serial=serial)


@pytest.fixture(scope="session")
def answers(key: KeyPair) -> Install:
    """What a user would answer to the installer."""
    return answers_for(key)


@dataclass(frozen=True)
class Installed:
    """An installed disk, and how to boot it.

    Attributes:
        disk: The disk; each boot has an overlay of its own.
        answers: What the installer was told.
    """

    disk: Disk
    answers: Install

    def start(self, boot: Boot, name: str = "installed") -> Machine:
        """Start a machine with this disk alone: no medium, no seed, no credential."""
        return boot(name=name, medium=False, disks=[self.disk], authorize=False, account=USER)


def installed_by(machine: Machine, answers: Install, disk: str = "target") -> Installed:
    """Return the disk that a machine was installed on."""
    file = machine.disk(disk)
    return Installed(Disk(disk, base=file.path, format=file.format, serial=answers.disk), answers)


@state(parent=points.installed)
def settled(boot: Boot, machine: Machine) -> Machine:
    """The installed system after its first boot was found good, with something worth keeping."""
    machine.os.wait_good()
    machine.succeed(machine.os.as_root("echo kept > /var/kept && sync"))
    return machine


class Updates:
    """What update servers have of the image under test: one version at a time, or several.

    Args:
        told: The run.
        scratch: A folder for the sets, on the file system that servers publish from.
    """

    def __init__(self, told: Session, scratch: Path) -> None:
        self._told = told
        self._scratch = scratch

    def named(self, word: str) -> str:
        """Return the version that is broken in the way of this name."""
        versions = self._told.selection.image.versions
        found = [each for each in versions if each.endswith(f"-{word}")]
        assert found, f"image.yaml lists no version N-{word}: {', '.join(versions)}"
        return found[0]

    def folder(self, version: str) -> Path:
        """Return the folder of a version's update set, unpacked once."""
        folder = self._scratch / version
        if not folder.exists():
            told = self._told
            wanted = told.catalog.resolve(f"{told.selection.name}:{version}", told.selection.arch)
            files = told.store.artifacts(wanted, progress=told.progress.say).files
            with tarfile.open(files["update"]) as archive:
                archive.extractall(folder, filter="data")
        return folder

    def over_https(self, server: UpdateServer, version: str) -> str:
        """Publish a version in a folder of its own, and return its address."""
        for path in self.folder(version).iterdir():
            server.publish(path, f"{version}/{path.name}")
        return f"{server.url}{version}/"

    def over_oci(self, registry: Registry, version: str) -> str:
        """Push a version to the registry, and return its address."""
        files = sorted(self.folder(version).iterdir())
        return f"oci://{registry.push(files, f'os/{self._told.selection.name}', version)}"


@pytest.fixture(scope="session")
def updates(request: pytest.FixtureRequest) -> Iterator[Updates]:
    """The update sets of the image's versions."""
    told = session.of(request.config)
    worker = getattr(request.config, "workerinput", {}).get("workerid", "alone")
    # Below "disks": removed with the run, and by the next one after a kill.
    scratch = told.run.folder(f"updates-{worker}") / "disks"
    scratch.mkdir(parents=True, exist_ok=True)
    yield Updates(told, scratch)
    shutil.rmtree(scratch.parent, ignore_errors=True)


@pytest.fixture
def upgradable(fork_of: ForkOf, update_server: UpdateServer, registry: Registry, ca: Ca) -> Machine:
    """A settled system that reaches the update server and the registry, and trusts them."""
    machine = fork_of(settled, services=[update_server, registry])
    machine.os.trust(ca.pem)
    return machine


def identity(machine: Machine) -> str:
    """Return what makes an installation the one that it is, and what was kept on /var."""
    return machine.succeed(
        "cat /etc/machine-id /etc/hostname /var/kept; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    )


def settle(machine: Machine) -> None:
    """Reboot, and wait until what runs then has been found good."""
    machine.reboot()
    machine.os.wait_good()
