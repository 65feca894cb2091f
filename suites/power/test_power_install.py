"""Power fails during an installation: the disk holds a whole system, or does not boot at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Cut, Install, Installable, Lab, Machine, Recorder, Recording, errors, points

pytestmark = [pytest.mark.needs("install"), pytest.mark.cuts(2)]

ANSWERS = Install(
    points.TARGET, hostname="harbour", user=points.USER.user, password=points.USER.password
)


@pytest.fixture(scope="module")
def recording(recorder: Recorder) -> Recording:
    """Return everything that is written to the disk during an installation."""
    return recorder("install", install)


def install(lab: Lab, folder: Path) -> Recording:
    """Install as a person would, and shut down."""
    machine: Machine[Installable] = lab.fork(points.live)
    with machine.recording("target", folder) as recording:
        recording.mark("begin")
        machine.os.install(ANSWERS)
        recording.mark("done")
        machine.shutdown()
    return recording


def check_whole(machine: Machine[Installable]) -> None:
    """Check that the system in which the account is logged in matches the answers."""
    assert machine.succeed("hostname").strip() == ANSWERS.hostname
    assert machine.succeed(machine.os.as_root("id -u")).strip() == "0"
    assert machine.os.slot() == machine.os.slot_names[0]
    assert machine.os.version() == machine.os.selection.version
    assert machine.restarts == 0


@pytest.mark.tier(
    "gate", cost=65, catches="a half-installed disk that boots and looks whole", uses=("live",)
)
def test_power_fails_during_an_installation(
    cut: Cut, lab: Lab, check_verified: Callable[[Machine[Any]], None]
) -> None:
    """The disk boots a whole system, or none, and then it can be installed on again.

    A system with a prompt at which the account cannot log in is not whole.
    """
    # Not to boot is one of two good outcomes: a failure of this machine stays within its own scope.
    with lab.child("cut") as inner:
        machine: Machine[Installable] = points.boot_installed(inner, cut.disk(), "cut", nics=())
        try:
            machine.os.login()
        except errors.LoginError:
            raise
        except errors.GuestError as error:
            assert not cut.after("done"), f"the installer had reported success: {error}"
        else:
            check_whole(machine)
            check_verified(machine)
            return
    again = reinstall(lab, cut)
    again.os.login()
    check_whole(again)
    check_verified(again)


def reinstall(lab: Lab, cut: Cut) -> Machine[Installable]:
    """Boot the live medium beside the disk, install onto it, and start the installed system."""
    live: Machine[Installable] = lab.boot(name="live", disks=[cut.disk()])
    live.os.login()
    live.os.install(ANSWERS)
    live.shutdown()
    disk = points.installed_disk(live, cut.recording.disk)
    return points.boot_installed(lab, disk, "again", nics=())
