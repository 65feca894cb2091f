"""The scheduler: a machine waits while others use the host, says why, and learns its scale."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from harness.deadline import NEVER, UNSCALED, Scale
from harness.errors import (
    HarnessError,
    PanicError,
    Verdict,
    WaitTimeoutError,
    is_transient,
    verdict_of,
)
from harness.evidence.timeline import Step, Timeline
from harness.host import scheduler
from harness.host.accel import Accel
from harness.host.admission import Admission, footprint, fork_footprint, pool
from harness.host.capacity import Capacity
from harness.host.pressure import Pressure
from harness.host.scheduler import Scheduler, Turn
from harness.scope import Scope
from harness.spec import GIB, MIB, Firmware, FirmwareKind, MachineSpec

ROOT = Path(__file__).resolve().parents[2]
ROOM = Capacity(cpus=2.0, memory=8 * GIB, available=8 * GIB, limit="host", cpu_limit="quota")
SPEC = MachineSpec("m", "x86_64", Firmware(FirmwareKind.BIOS), memory=2 * GIB)

HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from harness.host.admission import Admission, pool
    from harness.host.capacity import Capacity

    room = Capacity(2.0, 8 << 30, 8 << 30, "host", "quota")
    admission = Admission(pool(Path(sys.argv[1]), room), room)
    with admission.admit("big", memory=int(sys.argv[2]), cpus=float(sys.argv[3])):
        print("has it", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture(autouse=True)
def a_host_of_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "capacity", lambda: ROOM)


def at(cache: Path, scale: float = 1.0) -> Scheduler:
    return Scheduler(cache, lambda arch: Accel("tcg", "asked for"), scale)


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


def test_under_kvm_each_virtual_cpu_has_a_thread(tmp_path: Path) -> None:
    kvm = Scheduler(tmp_path, lambda arch: Accel("kvm", "asked for"))
    with kvm.admit(SPEC, Timeline()) as turn:
        assert turn.grant is not None
        assert turn.grant.cpus == 2


def test_a_cluster_of_three_and_one_more_machine_fit_on_two_cpus(tmp_path: Path) -> None:
    members = [replace(SPEC, name=f"member-{number}", memory=GIB) for number in range(3)]
    with contextlib.ExitStack() as room:
        turns = [
            room.enter_context(each) for each in at(tmp_path).admit_together(members, Timeline())
        ]
        assert [turn.grant.cpus for turn in turns if turn.grant] == [1, 1, 1]
        # Another process' machine; one of this process would not wait for CPUs.
        another = Holder(tmp_path, memory=2 * GIB, cpus=scheduler.busy(SPEC, "tcg"))
        assert granted(tmp_path)["big"] == 2 * GIB
        another.end()


def test_a_machine_asks_for_its_ram_and_what_qemu_takes(tmp_path: Path) -> None:
    with at(tmp_path).admit(SPEC, Timeline()) as turn:
        assert turn.grant is not None
        # TCG runs both virtual CPUs in one thread.
        assert turn.grant.cpus == 1
        assert turn.descriptors == (turn.grant.fileno(),)
        assert granted(tmp_path) == {"m": footprint(2 * GIB, "tcg")}
    assert granted(tmp_path) == {}


@pytest.mark.parametrize(
    ("working_set", "memory"),
    [(None, fork_footprint(2 * GIB)), (0, 192 * MIB), (GIB, 192 * MIB + GIB)],
)
def test_a_fork_asks_for_what_it_will_write_to(
    tmp_path: Path, working_set: int | None, memory: int
) -> None:
    with at(tmp_path).admit(SPEC, Timeline(), True, working_set=working_set):
        assert granted(tmp_path) == {"m": memory}
    assert fork_footprint(2 * GIB) == 192 * MIB + GIB // 2


def test_the_timeline_says_why_a_machine_waits(tmp_path: Path) -> None:
    holder = Holder(tmp_path, 6 * GIB, 0)
    waits = threading.Event()

    def listen(step: Step) -> None:
        if step.name.startswith("waiting for 2.4 GiB"):
            waits.set()

    timeline = Timeline(listener=listen)
    got: list[Turn] = []
    thread = threading.Thread(target=lambda: got.append(at(tmp_path).admit(SPEC, timeline)))
    thread.start()
    assert waits.wait(20), "it has not said that it waits"
    assert not got
    holder.end()
    thread.join(20)
    assert [turn.grant.name for turn in got if turn.grant is not None] == ["m"]
    got[0].release()
    got[0].release()  # harmless
    assert granted(tmp_path) == {}
    assert "6.0 GiB of 7.5 GiB" in timeline.steps[0].name
    assert timeline.steps[0].outcome == "passed"


def test_a_failure_of_the_scope_ends_the_wait_for_a_turn(tmp_path: Path) -> None:
    holder = Holder(tmp_path, 6 * GIB, 0)
    test, waits = Scope("test"), threading.Event()
    panic = PanicError("other: the kernel panicked")
    raised: list[HarnessError] = []

    def wait() -> None:
        timeline = Timeline(listener=lambda step: waits.set())
        try:
            at(tmp_path).admit(SPEC, timeline, scope=test.child("machine m"))
        except HarnessError as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waits.wait(20)
    test.child("machine other").fail(panic)
    thread.join(20)
    assert raised == [panic]
    status = Admission(pool(tmp_path, ROOM), ROOM).status()
    assert [entry.name for entry in (*status.granted, *status.waiting)] == ["big"]
    holder.end()


def test_an_urgent_machine_waits_for_no_cpu(tmp_path: Path) -> None:
    holder = Holder(tmp_path, GIB, 4)
    timeline = Timeline()
    with at(tmp_path).admit(SPEC, timeline, urgent=True):
        assert set(granted(tmp_path)) == {"big", "m"}
    assert timeline.steps == []
    holder.end()


def test_the_scale_has_the_factor_of_a_calm_host_and_the_clock_of_the_load(tmp_path: Path) -> None:
    pressure = Pressure(period=None)
    with at(tmp_path).admit(SPEC, Timeline()) as turn:
        alone = turn.scale.factor
        assert turn.scale.clock is None
    holder = Holder(tmp_path, GIB, 2)
    scheduler = replace(at(tmp_path, 3.0), pressure=pressure)
    with scheduler.admit(SPEC, Timeline()) as turn:
        # The other machine's load counts by the clock alone, or it would count twice.
        assert turn.scale.factor == pytest.approx(3 * alone)
        assert turn.scale.clock is pressure
    holder.end()


def test_a_doubtful_accelerator_is_in_the_timeline_and_its_waits_are_not_stretched(
    tmp_path: Path,
) -> None:
    timeline = Timeline()
    doubtful = Scheduler(
        tmp_path,
        lambda arch: Accel("kvm", "it was requested", "host", "KVM was requested, although ..."),
        pressure=Pressure(period=None),
    )
    with doubtful.admit(SPEC, timeline) as turn:
        assert turn.scale.clock is None
        deadline = turn.scale.after(1)
        assert deadline.pressure() == "KVM was requested, although ..."
        error = WaitTimeoutError("a prompt", deadline, hint="look at the console")
        assert verdict_of(error) is Verdict.INFRA
        # The second try would take as long as the first, and end as it did.
        assert not is_transient(error)
        assert error.hint == "--accel auto; otherwise: look at the console"
        assert is_transient(WaitTimeoutError("a prompt", UNSCALED.after(1)))
    assert [step.data["what"] for step in timeline.steps] == ["KVM was requested, although ..."]


def test_a_slow_machine_leaves_the_scale_of_another_alone(tmp_path: Path) -> None:
    fast = at(tmp_path).admit(SPEC, Timeline())
    before = fast.scale
    with at(tmp_path, 50.0).admit(SPEC, Timeline()) as slow:
        assert slow.scale.factor > 10 * before.factor
        assert fast.scale == before
        assert fast.scale.after(1).seconds == before.factor
    fast.release()


def test_a_turn_without_a_grant_holds_nothing() -> None:
    with Turn(scale=Scale(8.0)) as turn:
        assert turn.descriptors == ()


def test_a_wait_of_months_can_be_polled_for() -> None:
    """A deadline that a crowded host stretches must not be more than poll(2) takes."""
    far = UNSCALED.after(1e8)
    ready, other = os.pipe()
    waiter = select.poll()
    waiter.register(ready, select.POLLHUP)
    os.close(other)
    assert waiter.poll(far.poll_timeout())
    os.close(ready)
    assert NEVER.poll_timeout() is None
