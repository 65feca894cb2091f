"""Power goes while the system is installed: what is on the disk is whole, or does not pretend to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import points
from fixtures.cuts import Cut, Record
from fixtures.machines import Boot
from fixtures.states import ForkOf
from harness.crash import Recording
from harness.errors import GuestError, LoginError
from harness.machine import Machine
from harness.profiles import Install
from harness.spec import Disk
from suites.conftest import check_booted_once, check_verified

pytestmark = [pytest.mark.needs("install"), pytest.mark.cuts(2)]

ANSWERS = Install(
    points.TARGET, hostname="harbour", user=points.USER.user, password=points.USER.password
)


@pytest.fixture(scope="module")
def recording(record: Record) -> Recording:
    """All that is written to the disk during an installation."""
    return record("install", install)


def install(boot: Boot, fork_of: ForkOf, folder: Path) -> Recording:
    """Install as a person would, and shut down."""
    del boot
    machine = fork_of(points.live)
    with machine.recording("target", folder) as recording:
        recording.mark("begin")
        machine.os.install(ANSWERS)
        recording.mark("done")
        machine.shutdown()
    return recording


def start(boot: Boot, disk: Disk, name: str) -> Machine:
    """Start a machine with this disk alone, and nothing else to boot from."""
    return points.alone(boot, disk, name, network=False)


def check_whole(machine: Machine) -> None:
    """Check that a system in which somebody is logged in is the one that was asked for."""
    assert machine.succeed("hostname").strip() == ANSWERS.hostname
    assert machine.succeed(machine.os.as_root("id -u")).strip() == "0"
    assert machine.os.slot() == machine.os.slot_names[0]
    assert machine.os.version() == machine.os.selection.version
    check_verified(machine)
    check_booted_once(machine)


def test_power_goes_during_an_installation(cut: Cut, boot: Boot, fork_of: ForkOf) -> None:
    """The disk boots a whole system, or none, and then it can be installed on again.

    A system at whose prompt the account cannot log in pretends to be whole, and is not.
    """
    machine = start(boot, cut.disk(), "cut")
    try:
        machine.os.login()
    except LoginError:
        raise
    except GuestError as error:
        assert not cut.after("done"), f"the installer had said that it was done: {error}"
        machine.stop()
    else:
        check_whole(machine)
        return
    again = reinstall(boot, cut, fork_of)
    again.os.login()
    check_whole(again)


def reinstall(boot: Boot, cut: Cut, fork_of: ForkOf) -> Machine:
    """Boot the live medium beside the disk, install onto it, and start what was installed."""
    live = boot(name="live", disks=[cut.disk()])
    live.os.login()
    live.os.install(ANSWERS)
    live.shutdown()
    file = live.disk(cut.recording.disk)
    return start(boot, Disk("target", file.path, file.format), "again")
