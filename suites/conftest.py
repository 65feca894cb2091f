"""What the suites start from, besides the states of :mod:`fixtures.points`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fixtures.machines import Boot
from fixtures.points import TARGET, USER, answers_for
from harness.catalog import Selection
from harness.keys import KeyPair
from harness.machine import Machine
from harness.profiles.base import Install
from harness.spec import Disk


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
