"""Disks that fail while the system is installed."""

from __future__ import annotations

import pytest

from fixtures import points
from fixtures.machines import Boot
from fixtures.states import ForkOf
from harness.errors import InstallRefusedError
from harness.profiles.base import Install
from harness.qemu.filter import WRITES
from suites.conftest import installed_by

pytestmark = pytest.mark.needs("install")


@pytest.mark.parametrize("on", [WRITES, ("flush",)], ids=["full", "flush"])
def test_an_installation_onto_a_disk_that_fails(
    fork_of: ForkOf, boot: Boot, answers: Install, on: tuple[str, ...]
) -> None:
    """The installer says that it failed, and installs when the disk works again."""
    machine = fork_of(points.live)
    machine.disk_fault("target", on=on, after=25)
    with pytest.raises(InstallRefusedError):
        machine.os.install(answers)
    assert machine.disk_errors("target") > 0
    machine.heal_disk("target")
    machine.os.install(answers)
    machine.shutdown()
    again = installed_by(machine, answers).start(boot)
    again.os.login()
    assert again.os.slot() == "a"
