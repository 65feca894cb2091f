"""Power goes while the machine is reset: it comes back as it was, or reset, and never in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.cuts import Cut, Record
from fixtures.machines import Boot
from fixtures.points import alone, system_disk
from fixtures.states import ForkOf
from harness.crash import Recording
from harness.machine import Machine
from suites.conftest import check_booted_once, check_verified, settled

pytestmark = [pytest.mark.needs("recovery", "reset"), pytest.mark.cuts(2)]


@pytest.fixture(scope="module")
def recording(record: Record) -> Recording:
    """All that is written to the disk during a reset, and the boot that ends it."""
    return record("reset", reset)


def reset(boot: Boot, fork_of: ForkOf, folder: Path) -> Recording:
    """Reset from recovery; who the machine was is kept beside the recording."""
    machine = fork_of(settled)
    kept = f"{machine.os.state_folder}/kept"
    machine.succeed(machine.os.as_root(f"echo kept > {kept} && sync"))
    before = machine.os.identity()
    machine.os.boot_recovery()
    with machine.recording(system_disk(boot.image), folder) as recording:
        (folder / "before").write_text(f"{before.hostname}\n{before.machine_id}\n")
        recording.mark("begin")
        machine.os.reset()
        recording.mark("done")
        machine.power_cut()
    return recording


def was_reset(machine: Machine, recording: Recording) -> bool:
    """Return whether a machine is another one than before; check that all of it says so."""
    hostname, machine_id = (recording.folder / "before").read_text().splitlines()
    now = machine.os.identity()
    assert now.hostname == hostname
    assert machine.succeed(machine.os.as_root("id -u")) == "0\n"
    gone = machine.execute(f"test -e {machine.os.state_folder}/kept").status != 0
    assert (now.machine_id != machine_id) == gone, "half of the state is there"
    return gone


def test_power_goes_during_a_reset(
    cut: Cut, boot: Boot, check_state: Callable[[Path], None]
) -> None:
    """The machine is the old one with its state, or another that knows its user; reset again works."""
    check_state(cut.path)
    machine = alone(boot, cut.disk(), "cut", network=False)
    machine.os.login()
    check_verified(machine)
    gone = was_reset(machine, cut.recording)
    machine.os.wait_good()
    check_booted_once(machine)
    if cut.after("done"):
        assert gone, "the reset was done"
        return
    machine.os.reset()
    assert was_reset(machine, cut.recording)
