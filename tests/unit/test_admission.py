"""Admission: never more than there is, nobody starved, nothing lost with a killed process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import admission
from harness.admission import Admission, Limits, Need, Status, footprint, pool, workers
from harness.admission.board import Board
from harness.deadline import Deadline, after
from harness.errors import HostError, UsageError, WaitTimeoutError
from harness.host import Capacity
from harness.spec import GIB, MIB

ROOT = Path(__file__).resolve().parents[2]
STRESS = Path(__file__).with_name("admission_stress.py")

# 15 GiB and 4 virtual CPUs to grant.
ROOM = Capacity(cpus=2.0, memory=16 * GIB, available=16 * GIB, limit="host", cpu_limit="host")


class Other:
    """Another process that asks, as it is told to."""

    CODE = textwrap.dedent(
        """
        import json, os, sys
        from pathlib import Path
        from harness.admission import Admission, Need
        from harness.errors import HostError
        from harness.host import Capacity
        from harness.spec import GIB

        admission = Admission(Path(sys.argv[1]), Capacity(2.0, 16 * GIB, 16 * GIB, "host", "host"))
        held = {}
        say = lambda *words: print(json.dumps(words), flush=True)
        for line in sys.stdin:
            name, memory, cpus = json.loads(line)
            if not memory:
                held.pop(name).release()
                say("gave", name)
                continue
            try:
                held[name] = admission.admit(
                    name, memory=int(memory * GIB), cpus=cpus,
                    progress=lambda reason: say("waits", reason),
                )
                say("got", name)
            except HostError as error:
                say("refused", str(error))
        """
    )

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            bufsize=0,  # select would not see what a buffer has taken already
        )

    def ask(self, name: str, gib: float, cpus: float = 0) -> None:
        self._tell(name, gib, cpus)

    def give(self, name: str) -> None:
        self._tell(name, 0, 0)
        assert self.hears() == ["gave", name]

    def _tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()

    def hears(self) -> list[str]:
        """Return the next thing it says."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0], "it says nothing"
        told: list[str] = json.loads(self.process.stdout.readline())
        return told

    def gets(self, name: str) -> None:
        """Await that it gets what it asked for, whatever it waits for before."""
        while (told := self.hears())[0] == "waits":
            pass
        assert told == ["got", name]

    def waits(self) -> str:
        word, reason = self.hears()
        assert word == "waits"
        return reason

    @property
    def silent(self) -> bool:
        """Whether it has said nothing yet."""
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], 0)[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pool"


@pytest.fixture
def other(root: Path) -> Iterator[Callable[[], Other]]:
    started: list[Other] = []

    def start() -> Other:
        started.append(Other(root))
        return started[-1]

    yield start
    for each in started:
        if each.process.returncode is None:
            each.kill()


@pytest.fixture
def here(root: Path) -> Admission:
    return Admission(root, ROOM)


def soon() -> dict[str, Any]:
    return {"deadline": after(20, scaled=False)}


def now(here: Admission) -> tuple[list[str], list[str]]:
    status = here.status()
    return [each.name for each in status.granted], [each.name for each in status.waiting]


# --- what is granted ----------------------------------------------------------------------------


def test_a_grant_counts_until_it_is_released(here: Admission) -> None:
    with here.admit("skiff-1", memory=2 * GIB, cpus=1.5) as grant:
        status = here.status()
        assert (status.memory, status.cpus) == (2 * GIB, 1.5)
        assert [(each.name, each.pid) for each in status.granted] == [("skiff-1", os.getpid())]
        assert (grant.name, grant.memory, grant.cpus) == ("skiff-1", 2 * GIB, 1.5)
    grant.release()
    assert now(here) == ([], [])


def test_more_than_the_host_carries_is_refused_at_once(root: Path) -> None:
    room = replace(ROOM, limit="/sys/fs/cgroup/box/memory.max")
    with pytest.raises(HostError) as caught:
        Admission(root, room).admit("huge", memory=20 * GIB)
    text = str(caught.value)
    for word in ("huge", "20.0 GiB", "15.0 GiB", "/sys/fs/cgroup/box/memory.max", "try:"):
        assert word in text
    assert not isinstance(caught.value, WaitTimeoutError)


def test_machines_are_admitted_together_or_not_at_all(
    here: Admission, other: Callable[[], Other]
) -> None:
    one = other()
    one.ask("first", 6)
    one.gets("first")
    needs = [Need(f"node-{n}", 2, 4 * GIB) for n in range(3)]
    reasons: list[str] = []

    def free_it(reason: str) -> None:
        reasons.append(reason)
        assert now(here) == (["first"], ["node-0, node-1, node-2"])
        one.give("first")

    grants = here.admit_together(needs, progress=free_it, **soon())
    assert len(reasons) == 1
    assert [grant.name for grant in grants] == ["node-0", "node-1", "node-2"]
    # Six virtual CPUs are not to be had: they share the four.
    assert [grant.cpus for grant in grants] == [2, 2, 0]
    grants[1].release()
    assert now(here) == (["node-0", "node-2"], [])


def test_cpus_are_waited_for_by_who_holds_nothing(
    here: Admission, other: Callable[[], Other]
) -> None:
    mine = here.admit("mine", memory=GIB, cpus=3)
    # What this process holds already is no reason to wait, and never more than there is is counted.
    assert here.admit("mine-2", memory=GIB, cpus=2, **soon()).cpus == 1
    one = other()
    one.ask("its", 1, cpus=64)
    assert "1.0 GiB and 4 CPUs" in one.waits()
    mine.release()
    assert "1 of 4 CPUs" in one.waits()
    assert one.silent


def test_a_need_is_a_number_not_below_zero() -> None:
    for wrong in ((-1.0, 1), (1.0, -1), (float("nan"), 1), (float("inf"), 1)):
        with pytest.raises(UsageError):
            Need("odd", *wrong)


# --- waiting ------------------------------------------------------------------------------------


def test_who_waits_is_told_why_and_is_woken(here: Admission, other: Callable[[], Other]) -> None:
    grant = here.admit("skiff-1", memory=14 * GIB)
    one = other()
    one.ask("skiff-2", 2)
    reason = one.waits()
    for word in (
        "waiting for 2.0 GiB",
        "14.0 GiB of 15.0 GiB",
        f"skiff-1 (process {os.getpid()}, 14.0 GiB)",
    ):
        assert word in reason
    grant.release()
    one.gets("skiff-2")


def test_a_killed_process_holds_nothing(here: Admission, other: Callable[[], Other]) -> None:
    one = other()
    one.ask("big", 15)
    one.gets("big")
    with here.admit("next", memory=15 * GIB, progress=lambda reason: one.kill(), **soon()):
        assert now(here) == (["next"], [])


def test_a_child_keeps_the_grant_that_it_inherited(
    here: Admission, other: Callable[[], Other]
) -> None:
    grant = here.admit("skiff", memory=15 * GIB)
    child = subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[grant.fileno()]
    )
    with child:
        grant.release()
        with pytest.raises(UsageError):
            grant.fileno()
        one = other()
        one.ask("next", 15)
        assert "granted to skiff" in one.waits()
        child.kill()
    one.gets("next")


def test_nobody_overtakes_a_big_machine(here: Admission, other: Callable[[], Other]) -> None:
    grant = here.admit("first", memory=5 * GIB)
    big, small, smaller = other(), other(), other()
    big.ask("big", 14)
    big.waits()
    small.ask("small", 1)
    assert f"behind big (process {big.process.pid}, 14.0 GiB)" in small.waits()
    smaller.ask("smaller", 0.5)
    assert "behind small" in smaller.waits()
    assert now(here) == (["first"], ["big", "small", "smaller"])
    assert small.silent
    assert smaller.silent
    grant.release()
    big.gets("big")
    small.gets("small")
    smaller.waits()
    assert now(here) == (["big", "small"], ["smaller"])


def test_the_line_closes_up_when_one_of_it_is_killed(
    here: Admission, other: Callable[[], Other]
) -> None:
    grant = here.admit("first", memory=15 * GIB)
    line = [other() for _ in range(3)]
    for number, each in enumerate(line):
        each.ask(f"next-{number}", 10)
        each.waits()
    line[1].kill()
    assert "behind next-0" in line[2].waits()
    line[0].kill()
    line[2].waits()
    grant.release()
    line[2].gets("next-2")


def test_a_deadline_ends_the_wait_and_leaves_no_request(
    here: Admission, other: Callable[[], Other]
) -> None:
    one = other()
    one.ask("hog", 15)
    one.gets("hog")
    with pytest.raises(WaitTimeoutError, match="skiff") as caught:
        here.admit("skiff", memory=GIB, deadline=after(0.05, scaled=False))
    assert "hog (process" in str(caught.value)
    assert now(here) == (["hog"], [])


def test_an_interrupt_leaves_no_request(here: Admission, other: Callable[[], Other]) -> None:
    one = other()
    one.ask("hog", 15)
    one.gets("hog")
    before = len(list(Path("/proc/self/fd").iterdir()))

    def interrupt(reason: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.admit("skiff", memory=GIB, progress=interrupt)
    assert now(here) == (["hog"], [])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- who would wait for ever --------------------------------------------------------------------


def test_a_process_does_not_wait_for_itself(here: Admission) -> None:
    with (
        here.admit("one", memory=10 * GIB),
        pytest.raises(HostError, match="for ever") as caught,
    ):
        here.admit("two", memory=10 * GIB)
    assert "one (process" in str(caught.value)
    assert "together" in str(caught.value)
    assert now(here) == ([], [])


def test_who_closes_a_circle_is_refused(here: Admission, other: Callable[[], Other]) -> None:
    one, two, three = other(), other(), other()
    for each, name in ((one, "one"), (two, "two"), (three, "three")):
        each.ask(name, 5)
        each.gets(name)
    one.ask("one-more", 5)
    one.waits()
    # What three holds will be free some day, for one; and then what one holds, for two.
    two.ask("two-more", 4)
    two.waits()
    three.ask("three-more", 2)
    word, text = three.hears()
    assert word == "refused"
    assert "while others wait: one-more" in text
    three.give("three")
    one.gets("one-more")
    assert now(here) == (["one", "two", "one-more"], ["two-more"])
    one.give("one")
    two.gets("two-more")


def test_a_wait_that_others_will_end_is_no_circle(
    here: Admission, other: Callable[[], Other]
) -> None:
    one, two = other(), other()
    one.ask("one", 5)
    one.gets("one")
    two.ask("two", 5)
    two.gets("two")
    here_grant = here.admit("here", memory=5 * GIB)
    one.ask("one-more", 5)
    one.waits()
    two.ask("two-more", 5)
    two.waits()
    here_grant.release()
    one.gets("one-more")
    two.waits()
    one.give("one")
    two.gets("two-more")


def test_who_holds_goes_before_who_waits_for_that(
    here: Admission, other: Callable[[], Other]
) -> None:
    one = here.admit("one", memory=5 * GIB)
    big = other()
    big.ask("big", 15)
    big.waits()
    here.admit("two", memory=5 * GIB, **soon()).release()
    one.release()
    big.gets("big")


def test_a_circle_of_others_is_not_its_fault(root: Path, other: Callable[[], Other]) -> None:
    hog, big = other(), other()
    hog.ask("hog", 2)
    hog.gets("hog")
    # Whose own limit is lower cannot see how the big one will ever be served.
    small = Admission(root, replace(ROOM, memory=8 * GIB))
    with small.admit("small", memory=GIB, cpus=0, **soon()):
        big.ask("big", 14)
        big.waits()
        small.admit("small-2", memory=GIB, **soon()).release()


def test_threads_of_one_process_count_as_one(here: Admission, other: Callable[[], Other]) -> None:
    one, rival = other(), other()
    one.ask("hog", 15)
    one.gets("hog")
    asked, got = threading.Semaphore(0), threading.Semaphore(0)

    def admit(name: str, gib: int) -> None:
        here.admit(name, memory=gib * GIB, cpus=0, progress=lambda _: asked.release(), **soon())
        got.release()

    first = threading.Thread(target=admit, args=("first", 10))
    first.start()
    assert asked.acquire(timeout=20)
    rival.ask("rival", 15)
    rival.waits()
    second = threading.Thread(target=admit, args=("second", 5))
    second.start()
    assert asked.acquire(timeout=20)
    assert now(here) == (["hog"], ["first", "rival", "second"])
    one.give("hog")
    # With the first served, the second comes before the rival, which waits for both.
    assert got.acquire(timeout=20)
    assert got.acquire(timeout=20)
    first.join()
    second.join()
    assert now(here) == (["first", "second"], ["rival"])


# --- the folder ---------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError, match="cannot be used") as caught:
        Admission(tmp_path / "file" / "pool", ROOM).admit("skiff", memory=GIB)
    assert "HARNESS_CACHE" in str(caught.value)


def test_files_of_others_are_left_alone(root: Path, here: Admission) -> None:
    here.admit("skiff", memory=GIB).release()
    for name in ("README", "1+2+3", "a+b+c+d+e+f+g"):
        (root / "grants" / name).write_text("not ours")
    assert now(here) == ([], [])
    assert len(list((root / "grants").iterdir())) == 3


@pytest.mark.parametrize("name", ["a/b", "a+b", "../../x", "ü" * 300, "test[x-1]", ""])
def test_a_name_can_be_anything(here: Admission, name: str) -> None:
    with here.admit(name, memory=GIB), here.admit(name, memory=GIB):
        assert len(here.status().granted) == 2


def test_a_gate_that_stays_shut_says_whose_it_is(root: Path, here: Admission) -> None:
    here.status()
    with (root / "gate").open("r+") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        gate.truncate(0)
        gate.write("4711")
        gate.flush()
        with pytest.raises(WaitTimeoutError, match="process 4711"):
            here.admit("skiff", memory=GIB, deadline=after(0.05, scaled=False))
    # The thread that was given up on has its turn now, and lets go at once.
    for thread in threading.enumerate():
        if thread.name == "harness-admission":
            thread.join(20)
    here.admit("skiff", memory=GIB, **soon()).release()


def test_a_copy_of_the_gate_in_a_fork_keeps_nobody_out(root: Path, here: Admission) -> None:
    with Board(root).gate(after(20, scaled=False)):
        gate = next(
            int(each.name)
            for each in Path("/proc/self/fd").iterdir()
            if each.resolve() == (root / "gate").resolve()
        )
        copy = os.dup(gate)
    try:
        assert here.status(after(20, scaled=False)).granted == ()
    finally:
        os.close(copy)


def test_nobody_sees_a_request_beside_its_grant(
    here: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Board.gate
    seen: list[Status] = []

    @contextlib.contextmanager
    def watched(self: Board, deadline: Deadline) -> Iterator[None]:
        with gate(self, deadline):
            yield
            seen.append(self.look())

    monkeypatch.setattr(Board, "gate", watched)
    with here.admit("skiff", memory=GIB):
        assert [(len(each.granted), len(each.waiting)) for each in seen] == [(1, 0)]


# --- hard ---------------------------------------------------------------------------------------


def run_stress(*arguments: object) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(STRESS), *map(str, arguments)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def test_a_storm_of_processes_and_kills(root: Path) -> None:
    told = run_stress("storm", root, 1, 40)
    assert told["over"] == 0
    assert told["kills"] == 40
    assert told["most"] > 10 << 10, "the storm was none: the host was never nearly full"
    assert (told["granted"], told["waiting"], told["files"]) == (0, 0, ["gate"])


@pytest.mark.parametrize("what", ["granted", "waiting"])
def test_a_kill_at_any_moment_leaves_nothing(root: Path, what: str) -> None:
    told = run_stress("sweep", root, what)
    assert told["kills"] > 15
    assert (told["granted"], told["waiting"], told["files"]) == (0, 0, ["gate"])


# --- sizes --------------------------------------------------------------------------------------


def test_some_memory_is_left_to_the_host() -> None:
    assert Limits.of(ROOM) == Limits(4.0, 15 * GIB)
    assert Limits.of(replace(ROOM, memory=2 * GIB)).memory == 1536 * MIB
    assert Limits.of(replace(ROOM, memory=256 * MIB)).memory == 0


@pytest.mark.parametrize(
    ("cpus", "memory", "wanted"),
    [
        (2.0, 24 * GIB, 2),
        (16.0, 24 * GIB, 9),
        (64.0, 256 * GIB, 64),
        (0.5, 24 * GIB, 1),
        (8.0, 1 * GIB, 1),
    ],
)
def test_auto_is_what_the_host_carries(cpus: float, memory: int, wanted: int) -> None:
    assert workers(replace(ROOM, cpus=cpus, memory=memory)) == wanted


def test_workers_of_small_machines_are_more() -> None:
    room = replace(ROOM, cpus=16.0)
    assert workers(room, cpus=1, memory=footprint(256 * MIB, "tcg")) == 24
    assert footprint(GIB, "kvm") < footprint(GIB, "tcg")


def test_a_pool_is_one_for_each_host_boot_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = tmp_path / "boot_id"
    monkeypatch.setattr(admission.size, "_BOOT_ID", boot_id)
    folders = set()
    for boot in ("one", "two"):
        boot_id.write_text(boot)
        folders.add(pool(tmp_path, ROOM))
        for box in ("a", "b"):
            (tmp_path / box).mkdir(exist_ok=True)
            limited = replace(ROOM, limit=str(tmp_path / box / "memory.max"))
            folders.add(pool(tmp_path, limited))
            assert pool(tmp_path, limited) == pool(tmp_path, replace(limited, cpus=1.0))
    assert len(folders) == 6
    assert all(folder.parent == tmp_path / "admission" for folder in folders)
