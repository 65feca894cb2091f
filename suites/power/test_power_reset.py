"""Power goes while the machine is reset: it comes back as it was, or reset, and never in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.cuts import Cut, Record
from fixtures.machines import Boot
from fixtures.points import USER
from fixtures.states import ForkOf
from harness.crash import Recording
from harness.machine import Machine
from suites.conftest import settled

pytestmark = [pytest.mark.needs("install", "recovery", "reset"), pytest.mark.cuts(1)]

IDENTITY = "cat /etc/machine-id"
HOSTNAME = "cat /etc/hostname"


@pytest.fixture(scope="module")
def recording(record: Record) -> Recording:
    """All that is written to the disk during a reset, and the boot that ends it."""
    return record("reset", reset)


def reset(boot: Boot, fork_of: ForkOf, folder: Path) -> Recording:
    """Reset from recovery; who the machine was is kept beside the recording."""
    del boot
    machine = fork_of(settled)
    machine.succeed(machine.os.as_root("echo kept > /var/kept && sync"))
    before = {name: machine.succeed(name) for name in (IDENTITY, HOSTNAME)}
    machine.os.boot_recovery()
    with machine.recording("target", folder) as recording:
        for number, name in enumerate(before):
            (folder / f"before-{number}").write_text(before[name])
        recording.mark("begin")
        machine.os.reset()
        recording.mark("done")
        machine.power_cut()
    return recording


def was_reset(machine: Machine, recording: Recording) -> bool:
    """Return whether a machine is another one than before; check that all of it says so."""
    identity, hostname = (
        (recording.folder / f"before-{number}").read_text() for number in range(2)
    )
    assert machine.succeed(HOSTNAME) == hostname
    assert machine.succeed(machine.os.as_root("id -u")) == "0\n"
    gone = machine.execute("test -e /var/kept").status != 0
    assert (machine.succeed(IDENTITY) != identity) == gone, "half of the state is there"
    return gone


def test_power_goes_during_a_reset(
    cut: Cut, boot: Boot, check_state: Callable[[Path], None]
) -> None:
    """The machine is the old one with its state, or another that knows its user; reset again works."""
    check_state(cut.path)
    machine = boot(
        name="cut", medium=False, disks=[cut.disk()], nics=(), authorize=False, account=USER
    )
    machine.os.login()
    assert machine.os.verified()
    gone = was_reset(machine, cut.recording)
    machine.os.wait_good()
    if cut.after("done"):
        assert gone, "the reset was done"
        return
    machine.os.reset()
    assert was_reset(machine, cut.recording)
