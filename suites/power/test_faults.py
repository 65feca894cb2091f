"""Plain power cuts of a system that runs, and disks that fail while it is installed."""

from __future__ import annotations

import pytest

from fixtures import points
from fixtures.machines import Boot
from fixtures.states import ForkOf
from harness.errors import InstallRefusedError
from harness.machine import Machine
from harness.profiles.base import Install
from harness.qemu.filter import WRITES
from harness.spec import Disk
from suites.conftest import installed_by

pytestmark = pytest.mark.needs("install")


def test_what_was_synced_survives_a_power_cut(installed: Machine, boot: Boot) -> None:
    """The system boots again, and what it had synced to /var is there."""
    installed.succeed(installed.os.as_root("echo kept > /var/lib/kept && sync"))
    installed.power_cut()
    file = installed.disk("target")
    again = boot(
        name="again",
        medium=False,
        disks=[Disk("target", file.path, file.format, serial=points.TARGET)],
        authorize=False,
        account=points.USER,
    )
    again.os.login()
    assert again.succeed("cat /var/lib/kept").strip() == "kept"
    assert again.os.verified()


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
