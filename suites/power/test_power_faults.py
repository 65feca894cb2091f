"""Disks that fail while the system is installed or upgraded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import (
    Install,
    Installable,
    Lab,
    Machine,
    Releases,
    UpdateServer,
    Upgradable,
    errors,
    points,
)

WRITES = ("write", "write-zeroes")
"""The requests that fail on a disk without space."""


@pytest.mark.tier(
    "gate",
    cost=75,
    catches="an installer that reports success when its writes failed",
    uses=("live",),
)
@pytest.mark.needs("install")
@pytest.mark.parametrize(
    "on",
    [
        WRITES,
        pytest.param(
            ("flush",),
            marks=pytest.mark.tier(
                "nightly",
                cost=75,
                catches="an installer that reports success before the disk has the data",
            ),
        ),
    ],
    ids=["full", "flush"],
)
def test_an_installation_onto_a_disk_that_fails(
    lab: Lab, answers: Install, on: tuple[str, ...]
) -> None:
    """The installer reports the failure, and installs when the disk works again."""
    machine: Machine[Installable] = lab.fork(points.live)
    machine.disk_fault("target", on=on, after=25)
    with pytest.raises(errors.InstallRefusedError):
        machine.os.install(answers)
    assert machine.disk_errors("target") > 0
    machine.heal_disk("target")
    machine.os.install(answers)
    machine.shutdown()
    again: Machine[Installable] = points.boot_installed(lab, points.installed_disk(machine))
    again.os.login()
    assert again.os.slot() == again.os.slot_names[0]


@pytest.mark.tier(
    "gate",
    cost=80,
    catches="an upgrade that reports success, or is lost, when its writes failed",
    uses=("settled", "new"),
)
@pytest.mark.needs("upgrade", "ssh")
@pytest.mark.parametrize(
    "on",
    [
        WRITES,
        pytest.param(
            ("flush",),
            marks=pytest.mark.tier(
                "nightly",
                cost=80,
                catches="an upgrade that reports success before the disk has the data",
                uses=("settled", "new"),
            ),
        ),
    ],
    ids=["full", "flush"],
)
def test_an_upgrade_onto_a_disk_that_fails(
    lab: Lab,
    update_server: UpdateServer,
    publish: Callable[[str], str],
    releases: Releases,
    on: tuple[str, ...],
) -> None:
    """The system reports the failure; once the disk works again it boots, and upgrades."""
    machine: Machine[Upgradable] = lab.fork(points.settled, services=[update_server])
    machine.os.trust(lab.ca.pem)
    first, second = machine.os.slot(), machine.os.other_slot()
    source, disk = publish(releases.new), points.system_disk(machine.os.selection)
    # After a few writes, so that some of the upgrade is on the disk.
    machine.disk_fault(disk, on=on, after=100)
    with pytest.raises(errors.UpgradeRefusedError):
        machine.os.upgrade(source)
    assert machine.disk_errors(disk) > 0
    machine.heal_disk(disk)
    # No clean reboot: the file system of the state takes no more writes until it is mounted anew.
    machine.qmp.execute("system_reset")
    machine.console.skip()
    machine.os.login()
    assert (machine.os.version(), machine.os.slot()) == (releases.old, first)
    machine.os.wait_good()
    machine.os.upgrade(source)
    versions = {slot.name: slot.version for slot in machine.os.slots()}
    assert versions[second] == releases.new
