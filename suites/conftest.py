"""What the suites start from."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fixtures.machines import Boot
from harness import profiles
from harness.catalog import Selection
from harness.keys import KeyPair
from harness.machine import Machine
from harness.profiles.base import Account, Install
from harness.spec import Disk

TARGET = "target-1"
"""The serial of the disk that is installed onto."""


def target_disk(image: Selection, name: str = "target", serial: str = TARGET) -> Disk:
    """A blank disk of the size that the image asks for."""
    return Disk(name, size=image.image.machine.disk, serial=serial)


@pytest.fixture(scope="session")
def answers(key: KeyPair) -> Install:
    """What a user would answer to the installer."""
    return Install(TARGET, hostname="harbour", user="mate", key=key.public, password="ahoy-there")


@dataclass(frozen=True)
class Installed:
    """An installed disk, and how to boot it.

    Attributes:
        disk: The disk; each boot has an overlay of its own.
        answers: What the installer was told.
    """

    disk: Disk
    answers: Install

    @property
    def account(self) -> Account:
        """The account that the installer made."""
        return Account(self.answers.user, self.answers.password)

    def start(self, boot: Boot, name: str = "installed") -> Machine:
        """Start a machine with this disk alone: no medium, no seed, no credential."""
        return boot(
            name=name, medium=False, disks=[self.disk], authorize=False, account=self.account
        )


def installed_by(machine: Machine, answers: Install, disk: str = "target") -> Installed:
    """Return the disk that a machine was installed on."""
    file = machine.disk(disk)
    return Installed(Disk(disk, base=file.path, format=file.format, serial=answers.disk), answers)


@pytest.fixture(scope="module")
def installed(shared_boot: Boot, image: Selection, answers: Install) -> Installed:
    """An installed system, installed once for the tests of a module."""
    machine = shared_boot(
        name="installer",
        disks=[target_disk(image)],
        credentials=profiles.find(image.image.profile).install_credentials(answers),
    )
    machine.os.wait_installed()
    machine.wait_for_shutdown()
    return installed_by(machine, answers)
