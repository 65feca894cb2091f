"""What the suites start from, besides the states of :mod:`fixtures.points`."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.machines import Boot
from fixtures.points import TARGET, alone, answers_for, installed
from harness import profiles
from harness.catalog import Selection
from harness.keys import KeyPair
from harness.machine import Machine
from harness.profiles import Install
from harness.services import Registry, UpdateServer
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
        return alone(boot, self.disk, name)


def installed_by(machine: Machine, answers: Install, disk: str = "target") -> Installed:
    """Return the disk that a machine was installed on."""
    file = machine.disk(disk)
    return Installed(Disk(disk, base=file.path, format=file.format, serial=answers.disk), answers)


@state(parent=installed)
def settled(boot: Boot, machine: Machine) -> Machine:
    """An installed system whose first boot was found good."""
    del boot
    machine.os.wait_good()
    return machine


def check_booted_once(machine: Machine) -> None:
    """Check that a machine came up at its first try: nothing has restarted it by itself."""
    with machine.restarting_at_most(0, since=0):
        pass


def check_verified(machine: Machine) -> None:
    """Check that what is read from the root is checked, on an image that has it checked."""
    if "verity" in machine.os.selection.image.capabilities:
        assert machine.os.verified()


@pytest.fixture
def check_state(image: Selection) -> Callable[[Path], None]:
    """Check on the host that what a machine keeps is whole on its disk, given as a raw file."""
    return profiles.of(image.image).check_state


@pytest.fixture(scope="session")
def update_set(
    artifacts_of: Callable[[str], Mapping[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Path]]:
    """Return the files that an update server holds for a version of the image under test."""
    unpacked: dict[str, list[Path]] = {}

    def files(version: str) -> list[Path]:
        if version not in unpacked:
            folder = tmp_path_factory.mktemp(f"update-{version}")
            with tarfile.open(artifacts_of(version)["update"]) as archive:
                archive.extractall(folder, filter="data")
            unpacked[version] = sorted(folder.iterdir())
        return unpacked[version]

    return files


@pytest.fixture
def publish(
    update_server: UpdateServer, update_set: Callable[[str], list[Path]]
) -> Callable[[str], str]:
    """Put a version on the update server and return its address: ``publish("2")``."""

    def published(version: str) -> str:
        for path in update_set(version):
            update_server.publish(path, f"{version}/{path.name}")
        return f"{update_server.url}/{version}/"

    return published


@pytest.fixture
def push(registry: Registry, update_set: Callable[[str], list[Path]]) -> Callable[[str], str]:
    """Put a version into the registry and return its address: ``push("2")``."""
    return lambda version: f"oci://{registry.push(update_set(version), 'os/image', version)}"
