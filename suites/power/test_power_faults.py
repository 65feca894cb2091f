"""Disks that fail while the system is installed or upgraded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures import points
from fixtures.machines import Boot
from fixtures.releases import Releases
from fixtures.states import ForkOf
from harness.errors import InstallRefusedError, UpgradeRefusedError
from harness.profiles import Install
from harness.qemu.filter import WRITES
from harness.services import Ca, UpdateServer
from suites.conftest import installed_by, settled


@pytest.mark.needs("install")
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
    assert again.os.slot() == again.os.slot_names[0]


@pytest.mark.needs("upgrade", "ssh")
@pytest.mark.parametrize(
    "on", [WRITES, pytest.param(("flush",), marks=pytest.mark.nightly)], ids=["full", "flush"]
)
def test_an_upgrade_onto_a_disk_that_fails(
    fork_of: ForkOf,
    update_server: UpdateServer,
    ca: Ca,
    publish: Callable[[str], str],
    releases: Releases,
    on: tuple[str, ...],
) -> None:
    """The system says that it failed; once the disk works again it boots, and upgrades."""
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    first, second = machine.os.slot(), machine.os.other_slot()
    source, disk = publish(releases.new), points.system_disk(machine.os.selection)
    # A few writes after the first: some were done when it begins.
    machine.disk_fault(disk, on=on, after=100)
    with pytest.raises(UpgradeRefusedError):
        machine.os.upgrade(source)
    assert machine.disk_errors(disk) > 0
    machine.heal_disk(disk)
    # Not in order: the file system of the state takes no more writes until it is mounted anew.
    machine.qmp.execute("system_reset")
    machine.console.skip()
    machine.os.login()
    assert (machine.os.version(), machine.os.slot()) == (releases.old, first)
    machine.os.wait_good()
    machine.os.upgrade(source)
    made = {each.name: each.version for each in machine.os.slots()}
    assert made[second] == releases.new
