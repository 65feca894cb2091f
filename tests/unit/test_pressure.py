"""The host's pressure: from injected readings to stretch, level, figures and the timeline."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import MOST, Scale
from harness.errors import Verdict, WaitTimeoutError, verdict_of
from harness.evidence.timeline import Step, Timeline
from harness.host import pressure, readings
from harness.host.capacity import Capacity
from harness.host.pressure import Pressure
from harness.host.readings import Reading, Task

ROOM = Capacity(cpus=2.0, memory=1, available=1, limit="host", cpu_limit="host")
GIB = 1 << 30


class Host:
    """A host whose counters a test moves; QEMU has one thread that wants ``asked`` CPUs."""

    def __init__(self, room: Capacity = ROOM) -> None:
        self.reading = Reading(
            at=500.0,
            tasks={7: Task(0.0, 0.0)},
            memory=8 * GIB,
            disk=8 * GIB,
            runnable=2,
            oom_kills={Path("vmstat"): 0},
        )
        self.pressure = Pressure(
            read=self._read, now=lambda: self.reading.at, room=room, period=None
        )
        self.pids: list[int] = []
        self.scale = Scale(clock=self.pressure)

    def _read(self, pids: Iterable[int]) -> Reading:
        self.pids = list(pids)
        return self.reading

    def pass_(
        self,
        seconds: float = 1.0,
        *,
        share: float = 0.9,
        asked: float = 1.0,
        runnable: int = 2,
        steal: float = 0.0,
        memory_stalls: float = 0.0,
        io_stalls: float = 0.0,
        looks: bool = True,
        **changes: Any,
    ) -> None:
        """Let time pass, with a look each second."""
        while seconds > 0:
            step = min(seconds, 1.0) if looks else seconds
            seconds -= step
            now, task = self.reading, self.reading.tasks[7]
            assert task.waited is not None
            wanted = asked * step
            stalls = {
                ("/proc/pressure", name): now.stalls.get(("/proc/pressure", name), 0.0)
                + part * step
                for name, part in (("memory some", memory_stalls), ("io full", io_stalls))
            }
            self.reading = replace(
                now,
                at=now.at + step,
                tasks={7: Task(task.ran + wanted * share, task.waited + wanted * (1 - share))},
                runnable=runnable,
                stolen=now.stolen + steal * step,
                stalls=stalls,
                **changes,
            )
            if looks:
                self.pressure.look()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    monkeypatch.setattr("harness.deadline.time.monotonic", lambda: host.reading.at)
    with host.pressure.watching(1, Timeline()):
        yield host


def test_one_guest_alone_is_calm(host: Host) -> None:
    limit = host.scale.after(10)
    host.pass_(10, share=0.85, runnable=3)
    assert limit.expired or limit.remaining() < 3
    assert limit.pressure() == ""
    assert host.pids == [1]


def test_two_guests_of_harness_are_slow_and_calm(host: Host) -> None:
    """Measured: a share of 0.51 to 0.67, three or four threads of the other worker in the queue."""
    since = host.reading.at
    host.pass_(30, share=0.52, asked=1.9, runnable=6)
    conditions = host.pressure.during(since)
    assert conditions.stretch == pytest.approx(1 / 0.52)
    assert conditions.pressure == ""


def test_a_load_of_sixteen_stretches_and_is_named(host: Host) -> None:
    limit = host.scale.after(10)
    host.pass_(20, share=0.2, asked=2.0, runnable=19)
    assert limit.remaining() > 0
    host.pass_(31, share=0.2, asked=2.0, runnable=19)
    assert limit.expired
    error = WaitTimeoutError("a prompt", limit)
    assert verdict_of(error) is Verdict.INFRA
    assert "stretched x 5.0 for the load of the host" in error.what
    assert "the host was under pressure for 51 of 51 s" in error.what
    assert "QEMU got 20% of what it asked for" in error.what
    assert "16 other threads were runnable for 2 CPUs" in error.what


def test_the_same_wait_on_a_calm_host_is_a_timeout(host: Host) -> None:
    limit = host.scale.after(10)
    host.pass_(15)
    assert limit.expired
    assert verdict_of(WaitTimeoutError("a prompt", limit)) is Verdict.TIMEOUT


def test_a_host_on_which_nothing_runs_ends_a_wait_at_eight_times_its_length(host: Host) -> None:
    limit = host.scale.after(10)
    host.pass_(79, share=0.0001, asked=3.0, runnable=4000)
    assert limit.remaining() > 0
    host.pass_(1, share=0.0001, asked=3.0, runnable=4000)
    assert limit.expired
    assert "QEMU got 0% of what it asked for" in limit.pressure()


def test_a_guest_that_wants_nothing_is_not_stretched_but_the_queue_is_pressure(host: Host) -> None:
    since = host.reading.at
    host.pass_(20, share=0.1, asked=0.01, runnable=17)
    conditions = host.pressure.during(since)
    assert conditions.stretch == 1.0
    assert "16 other threads were runnable for 2 CPUs" in conditions.pressure


def test_the_queue_of_the_host_says_nothing_about_a_cgroup() -> None:
    host = Host(replace(ROOM, cpu_limit="/sys/fs/cgroup/pod"))
    with host.pressure.watching(1, Timeline()):
        since = host.reading.at
        host.pass_(20, runnable=200)
        assert host.pressure.during(since).pressure == ""


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ({"steal": 0.5}, "a hypervisor took 50%"),
        ({"memory_stalls": 0.4}, "stalls for memory 40% of the time"),
        ({"io_stalls": 0.8}, "everything waited for I/O 80% of the time"),
        ({"memory": 100 << 20}, "100 MiB of memory available"),
        ({"disk": 5 << 20}, "5 MiB of disk free"),
        (
            {"oom_kills": {Path("vmstat"): 2, Path("pod"): 1}},
            "the kernel killed 2 processes for lack of memory",
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_each_kind_of_pressure_is_named(host: Host, cause: dict[str, Any], words: str) -> None:
    since = host.reading.at
    host.pass_(20)
    assert host.pressure.during(since).pressure == ""
    host.pass_(20, **cause)
    assert words in host.pressure.during(since).pressure


def test_a_tenth_of_a_wait_or_ten_seconds_are_pressure_and_less_is_none(host: Host) -> None:
    since = host.reading.at
    host.pass_(96)
    host.pass_(4, share=0.1, asked=2.0)
    host.pass_(3)
    assert host.pressure.during(since).pressure == ""
    host.pass_(12, share=0.1, asked=2.0)
    assert "QEMU got 1" in host.pressure.during(since).pressure
    # Not a tenth of this one, but long enough for a guest to lose its way.
    host.pass_(1000)
    assert host.pressure.during(since).pressure != ""
    assert host.pressure.during(since + 200).pressure == ""


def test_one_bad_second_is_no_pressure(host: Host) -> None:
    since = host.reading.at
    host.pass_(5)
    host.pass_(1, share=0.3)
    host.pass_(5)
    assert host.pressure.during(since).pressure == ""


def test_a_wait_shorter_than_a_look_has_the_figures_of_now(host: Host) -> None:
    host.pass_(10, share=0.1, asked=2.0)
    assert "QEMU got 10%" in host.pressure.during(host.reading.at).pressure
    host.pass_(10)
    assert host.pressure.during(host.reading.at).pressure == ""


def test_a_look_that_is_late_slows_the_clock_and_is_pressure(host: Host) -> None:
    host.pass_(5, share=1.0)
    calm, since = host.pressure.calm(), host.reading.at
    host.pass_(42, looks=False, asked=0.0)
    assert host.pressure.calm() - calm == pytest.approx(2 + 40 / MOST)
    conditions = host.pressure.during(since)
    assert "Harness itself did not run for 41 s" in conditions.pressure
    assert host.pressure.calm() - calm == pytest.approx(1 + 41 / MOST)


def test_kernels_that_count_no_waiting_show_ready_threads(host: Host) -> None:
    before = Reading(at=0, tasks={7: Task(10.0, None), 8: Task(5.0, None)})
    after = Reading(at=1, tasks={7: Task(10.1, None, True), 8: Task(5.0, None), 9: Task(3.0, None)})
    sums = pressure._sums(before, after)
    assert sums.share == pytest.approx(0.1)
    assert sums.asked == pytest.approx(1.0)


def test_a_suspend_is_a_finding_and_pressure(host: Host) -> None:
    since = host.reading.at
    limit = host.scale.after(1)
    host.pass_(5)
    host.pass_(1, asleep=3600.0)
    conditions = host.pressure.during(since)
    assert conditions.remarks == "the host was suspended for 3600 s"
    error = WaitTimeoutError("a prompt", limit)
    assert "the host was suspended for 3600 s" in error.what
    assert verdict_of(error) is Verdict.INFRA


@pytest.mark.parametrize(("step", "direction"), [(-90.0, "back"), (90.0, "forward")])
def test_a_step_of_the_wall_clock_moves_no_wait_and_is_said(
    host: Host, step: float, direction: str
) -> None:
    limit = host.scale.after(60)
    host.pass_(10)
    host.pass_(10, epoch=host.reading.epoch + step)
    assert limit.remaining() > 0
    host.pass_(50)
    error = WaitTimeoutError("a prompt", limit)
    assert f"the host's clock was set {direction} by 90.0 s" in error.what
    assert verdict_of(error) is Verdict.TIMEOUT


def test_a_kill_for_lack_of_memory_right_after_a_look_is_known(host: Host) -> None:
    host.pass_(10, oom_kills={Path("vmstat"): 1})
    assert host.scale.pressure(3) == ""
    host.pass_(0.1, looks=False, oom_kills={Path("vmstat"): 2})
    assert "the kernel killed 1 processes for lack of memory" in host.scale.pressure(3)


def test_slewing_is_no_step(host: Host) -> None:
    since = host.reading.at
    for _ in range(10_000):
        host.pass_(1, epoch=host.reading.epoch + 0.0005)
    assert host.pressure.during(since).remarks == ""


def test_memory_is_bounded_and_old_times_are_known_roughly(host: Host) -> None:
    since = host.reading.at
    host.pass_(100, share=0.1, asked=2.0)
    host.pass_(20_000)
    assert len(host.pressure._marks) <= 4096
    assert "for 10" in host.pressure.during(since).pressure
    assert host.pressure.during(since + 200).pressure == ""


def test_between_machines_the_clock_is_the_monotonic_one() -> None:
    host = Host()
    with host.pressure.watching(1, Timeline()):
        host.pass_(10, share=0.1, asked=2.0)
    calm = host.pressure.calm()
    assert host.pressure.stretch() == 1.0
    host.pass_(100, looks=False)
    assert host.pressure.calm() == pytest.approx(calm + 100)
    with host.pressure.watching(2, Timeline()):
        host.pass_(10)
        assert host.pressure.calm() == pytest.approx(calm + 100 + 9)


def test_the_end_of_a_machine_puts_the_figures_into_its_timeline() -> None:
    host, timeline = Host(), Timeline()
    with host.pressure.watching(1, timeline, "m"):
        host.pass_(10, share=0.5, asked=2.0, runnable=7)
    (step,) = timeline.steps
    assert (step.name, step.machine) == ("host", "m")
    assert step.data["seconds"] == 10
    assert step.data["cpu_asked"] == pytest.approx(2.0)
    assert step.data["cpu_got"] == pytest.approx(1.0)
    assert step.data["stretch"] == pytest.approx(2.0)
    assert step.data["others_runnable"] == pytest.approx(4.0)
    assert step.data["memory_mib"] == 8192


def test_a_step_under_load_says_so_and_a_short_or_calm_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host()
    monkeypatch.setattr("harness.evidence.timeline.time.monotonic", lambda: host.reading.at)
    timeline = Timeline(host=host.pressure.words)
    with host.pressure.watching(1, timeline):
        with timeline.step("calm"):
            host.pass_(10, share=0.9)
        with timeline.step("slow"):
            host.pass_(20, share=0.1, asked=2.0)
        timeline.note("an instant")
    notes = {step.name: step.data.get("host", "") for step in timeline.steps}
    assert notes["calm"] == notes["an instant"] == notes["host"] == ""
    assert notes["slow"].startswith("stretched x ")
    assert "QEMU got 1" in notes["slow"]


def test_the_thread_tells_the_timeline_of_each_change_and_jump_once() -> None:
    """With a real thread; each reading is the next second of a story, the last one repeats."""
    shares = [0.9] * 5 + [0.05] * 8 + [0.9] * 8
    story, now = [Reading(at=0.0, tasks={7: Task(0.0, 0.0)})], 0.0
    for number, share in enumerate(shares):
        now += 1.0
        last = story[-1].tasks[7]
        assert last.waited is not None
        task = Task(last.ran + share, last.waited + 1 - share)
        story.append(Reading(at=now, tasks={7: task}, asleep=60.0 if number > 2 else 0.0))
    noted, last_noted = [], threading.Event()

    def listen(step: Step) -> None:
        if step.seconds is not None:
            noted.append(step)
            if step.name.startswith("the host is calm"):
                last_noted.set()

    at = iter(story)
    measure = Pressure(
        read=lambda pids: next(at, story[-1]), now=lambda: 0.0, room=ROOM, period=0.001
    )
    with measure.watching(1, Timeline(listener=listen)):
        assert last_noted.wait(30)
    names = [step.name for step in noted]
    assert names.count("the host's clocks jumped") == 1
    assert names[-1] == "host"
    changes = [name for name in names if name.startswith("the host is")]
    # The suspend is pressure of its own; the load follows it.
    assert changes[0] == "the host is under pressure"
    assert changes[-1] == "the host is calm again"
    assert not [each for each in threading.enumerate() if each.name == "host-pressure"]


# --- the kernel's counters -----------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    write(proc / "stat", "cpu  1 2 3 4 5 6 7 800 0 0\ncpu0 1\nprocs_running 14\n")
    write(proc / "vmstat", "oom_kill_other 9\noom_kill 3\n")
    write(proc / "meminfo", "MemTotal: 4096 kB\nMemAvailable: 2048 kB\n")
    write(proc / "pressure/io", "some avg10=0.0 total=9\nfull avg10=0.0 avg60=0.0 total=2000000\n")
    write(proc / "self/cgroup", "0::/pod\n")
    write(tmp_path / "cg/pod/io.pressure", "full avg10=0.00 total=5000000\n")
    write(tmp_path / "cg/pod/memory.events", "low 0\noom 7\noom_kill 2\noom_group_kill 0\n")
    for thread, name in ((42, "qemu"), (43, "CPU 0) R 1 (KVM")):
        fields = " ".join(["R", *["0"] * 10, "250", "50", *["0"] * 30])
        write(proc / f"42/task/{thread}/stat", f"{thread} ({name}) {fields}")
        write(proc / f"42/task/{thread}/schedstat", "3000000000 1500000000 77\n")
    return proc


def test_the_counters_are_read(proc: Path, tmp_path: Path) -> None:
    reading = readings.read(
        [42, 999], [tmp_path, tmp_path / "no"], proc=proc, cgroup=tmp_path / "cg"
    )
    assert reading.tasks == {42: Task(3.0, 1.5), 43: Task(3.0, 1.5)}
    assert (reading.runnable, reading.memory) == (14, 2 << 20)
    assert reading.oom_kills == {
        proc / "vmstat": 3,
        tmp_path / "cg/pod/memory.events": 2,
    }
    assert reading.stolen == pytest.approx(800 / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1))
    assert reading.stalls[str(proc / "pressure"), "io full"] == 2.0
    assert reading.stalls[str(tmp_path / "cg/pod"), "io full"] == 5.0
    assert 0 < reading.disk < 1 << 62


def test_the_kills_of_a_cgroup_of_version_1_are_read(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "4:memory:/pod\n")
    text = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
    write(tmp_path / "cg/memory/pod/memory.oom_control", text)
    reading = readings.read([], proc=proc, cgroup=tmp_path / "cg")
    assert reading.oom_kills[tmp_path / "cg/memory/pod/memory.oom_control"] == 5


@pytest.mark.parametrize("schedstat", [None, "0 0 0\n"])
def test_a_kernel_without_scheduler_statistics_shows_states(
    proc: Path, schedstat: str | None
) -> None:
    path = proc / "42/task/43/schedstat"
    path.unlink()
    if schedstat is not None:
        path.write_text(schedstat)
    task = readings.read([42], proc=proc, cgroup=proc).tasks[43]
    assert task == Task(300 / os.sysconf("SC_CLK_TCK"), None, True)


def test_a_host_that_shows_nothing_is_calm(tmp_path: Path) -> None:
    def read(pids: Iterable[int]) -> Reading:
        return readings.read(pids, proc=tmp_path, cgroup=tmp_path)

    measure = Pressure(read=read, period=None, room=ROOM)
    with measure.watching(1, Timeline()):
        measure.look()
        measure.look()
        assert measure.during(0.0).pressure == ""


def test_a_real_process_that_computes_beside_others_is_seen() -> None:
    """Without an assertion on how busy the host is: the counters move, and the share is one."""
    burners = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(2)]
    try:
        first = readings.read([each.pid for each in burners])
        again = threading.Event()
        while sum(task.ran for task in first.tasks.values()) <= 0:
            again.wait(0.05)
            first = readings.read([each.pid for each in burners])
        reading = first
        while reading.at - first.at < 1 or reading.tasks == first.tasks:
            again.wait(0.2)
            reading = readings.read([each.pid for each in burners])
        sums = pressure._sums(first, reading)
        assert 0 < sums.share <= 1
        assert sums.asked > 0
    finally:
        for each in burners:
            each.kill()
            each.wait()
