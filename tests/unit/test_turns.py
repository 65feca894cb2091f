"""A machine's turn: it waits while others have the host, and says why."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import deadline, turns
from harness.admission import Admission, Grant, footprint, fork_footprint, pool
from harness.evidence.timeline import Step, Timeline
from harness.host import Capacity
from harness.qemu.accel import Accel
from harness.spec import GIB, MIB, Firmware, FirmwareKind, MachineSpec
from harness.turns import Turns

ROOT = Path(__file__).resolve().parents[2]
ROOM = Capacity(cpus=2.0, memory=8 * GIB, available=8 * GIB, limit="host", cpu_limit="quota")
SPEC = MachineSpec("m", "x86_64", Firmware(FirmwareKind.BIOS), memory=2 * GIB)

HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from harness.admission import Admission, pool
    from harness.host import Capacity

    room = Capacity(2.0, 8 << 30, 8 << 30, "host", "quota")
    admission = Admission(pool(Path(sys.argv[1]), room), room)
    with admission.admit("big", memory=int(sys.argv[2]), cpus=float(sys.argv[3])):
        print("has it", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture(autouse=True)
def a_host_of_a_known_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(turns, "capacity", lambda: ROOM)
    before = deadline.scale()
    yield
    deadline.set_scale(before)


def at(cache: Path, scale: float = 1.0) -> Turns:
    return Turns(cache, lambda arch: Accel("tcg", "told so"), scale)


class Holder:
    """Another process that has some of the host."""

    def __init__(self, cache: Path, memory: int, cpus: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(cache), str(memory), str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"has it\n"

    def end(self) -> None:
        self.process.communicate()


def granted(cache: Path) -> dict[str, int]:
    status = Admission(pool(cache, ROOM), ROOM).status()
    return {entry.name: entry.memory for entry in status.granted}


def test_a_machine_asks_for_its_ram_and_what_qemu_takes(tmp_path: Path) -> None:
    with at(tmp_path).take(SPEC, Timeline()) as grant:
        assert grant.cpus == 2
        assert granted(tmp_path) == {"m": footprint(2 * GIB, "tcg")}
    assert granted(tmp_path) == {}


@pytest.mark.parametrize(
    ("working_set", "memory"),
    [(None, fork_footprint(2 * GIB)), (0, 192 * MIB), (GIB, 192 * MIB + GIB)],
)
def test_a_fork_asks_for_what_it_will_write_to(
    tmp_path: Path, working_set: int | None, memory: int
) -> None:
    with at(tmp_path).take(SPEC, Timeline(), True, working_set=working_set):
        assert granted(tmp_path) == {"m": memory}
    assert fork_footprint(2 * GIB) == 192 * MIB + GIB // 2


def test_it_waits_and_the_timeline_says_for_what(tmp_path: Path) -> None:
    holder = Holder(tmp_path, 6 * GIB, 0)
    waits = threading.Event()

    def listen(step: Step) -> None:
        if step.name.startswith("waiting for 2.4 GiB"):
            waits.set()

    timeline = Timeline(listener=listen)
    got: list[Grant] = []
    thread = threading.Thread(target=lambda: got.append(at(tmp_path).take(SPEC, timeline)))
    thread.start()
    assert waits.wait(20), "it has not said that it waits"
    assert not got
    holder.end()
    thread.join(20)
    assert [grant.name for grant in got] == ["m"]
    got[0].release()
    assert "6.0 GiB of 7.5 GiB" in timeline.steps[0].name
    assert timeline.steps[0].outcome == "passed"


def test_who_builds_a_state_that_others_wait_for_waits_for_no_cpu(tmp_path: Path) -> None:
    holder = Holder(tmp_path, GIB, 4)
    timeline = Timeline()
    with at(tmp_path).take(SPEC, timeline, urgent=True):
        assert set(granted(tmp_path)) == {"big", "m"}
    assert timeline.steps == []
    holder.end()


def test_deadlines_follow_the_crowd(tmp_path: Path) -> None:
    with at(tmp_path).take(SPEC, Timeline()):
        alone = deadline.scale()
    holder = Holder(tmp_path, GIB, 2)
    with at(tmp_path).take(SPEC, Timeline()):
        # Four virtual CPUs want two: twice as long as two that want two.
        assert deadline.scale() == pytest.approx(2 * alone)
    with at(tmp_path, 3.0).take(SPEC, Timeline()):
        assert deadline.scale() == pytest.approx(6 * alone)
    holder.end()


def test_a_wait_of_months_can_be_polled_for() -> None:
    """A deadline that a crowded host stretches must not be more than poll(2) takes."""
    far = deadline.after(1e8, scaled=False)
    ready, other = os.pipe()
    waiter = select.poll()
    waiter.register(ready, select.POLLHUP)
    os.close(other)
    assert waiter.poll(far.poll_timeout())
    os.close(ready)
    assert deadline.NEVER.poll_timeout() is None
