"""Power fails during a reset: the machine comes back as it was, or reset, and never in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from harness import Cut, Lab, Machine, Recorder, Recording, Recoverable, Resettable, points


class RecoversAndResets(Recoverable, Resettable, Protocol):
    """Has a recovery entry, and can be reset."""


pytestmark = [pytest.mark.needs("recovery", "reset"), pytest.mark.cuts(2)]


@pytest.fixture(scope="module")
def recording(recorder: Recorder) -> Recording:
    """Return everything that is written to the disk during a reset, and the boot that ends it."""
    return recorder("reset", reset)


def reset(lab: Lab, folder: Path) -> Recording:
    """Reset from recovery; the identity before it is kept beside the recording."""
    machine: Machine[RecoversAndResets] = lab.fork(points.settled)
    kept = f"{machine.os.state_folder}/kept"
    machine.succeed(machine.os.as_root(f"echo kept > {kept} && sync"))
    before = machine.os.identity()
    machine.os.boot_recovery()
    with machine.recording(points.system_disk(lab.image), folder) as recording:
        (folder / "before").write_text(f"{before.hostname}\n{before.machine_id}\n")
        recording.mark("begin")
        machine.os.reset()
        recording.mark("done")
        machine.power_cut()
    return recording


def was_reset(machine: Machine[Any], recording: Recording) -> bool:
    """Return whether a machine has a new identity; check that identity and state agree."""
    hostname, machine_id = (recording.folder / "before").read_text().splitlines()
    now = machine.os.identity()
    assert now.hostname == hostname
    assert machine.succeed(machine.os.as_root("id -u")) == "0\n"
    gone = machine.execute(f"test -e {machine.os.state_folder}/kept").status != 0
    assert (now.machine_id != machine_id) == gone, "half of the state is there"
    return gone


@pytest.mark.tier(
    "nightly", cost=50, catches="a machine that keeps half of its state", uses=("settled",)
)
def test_power_fails_during_a_reset(
    cut: Cut,
    lab: Lab,
    check_state: Callable[[Path], None],
    check_verified: Callable[[Machine[Any]], None],
) -> None:
    """The machine has its identity and state, or is reset and knows its user; a second reset works."""
    check_state(cut.path)
    machine: Machine[RecoversAndResets] = points.boot_installed(lab, cut.disk(), "cut", nics=())
    machine.os.login()
    check_verified(machine)
    gone = was_reset(machine, cut.recording)
    machine.os.wait_good()
    assert machine.restarts == 0
    if cut.after("done"):
        assert gone, "the reset was done"
        return
    machine.os.reset()
    assert was_reset(machine, cut.recording)
