"""Admission never exceeds the host, starves no process, and loses nothing with a killed one."""

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

from harness.deadline import UNSCALED, Deadline
from harness.errors import HostError, UsageError, WaitTimeoutError
from harness.host import measured
from harness.host.admission import Admission, Limits, Need, Occupancy, footprint, pool, workers
from harness.host.admission.board import Board
from harness.host.capacity import Capacity
from harness.qemu import argv
from harness.spec import GIB, MIB

ROOT = Path(__file__).resolve().parents[2]
STRESS = Path(__file__).with_name("admission_stress.py")

# 15 GiB and 4 virtual CPUs to grant.
ROOM = Capacity(cpus=2.0, memory=16 * GIB, available=16 * GIB, limit="host", cpu_limit="host")


class Other:
    """Another process, which requests and releases machines on command."""

    CODE = textwrap.dedent(
        """
        import json, os, sys
        from pathlib import Path
        from harness.host.admission import Admission, Need
        from harness.errors import HostError
        from harness.host.capacity import Capacity
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
            bufsize=0,  # select does not see data that a buffer already holds
        )

    def request(self, name: str, gib: float, cpus: float = 0) -> None:
        self._send(name, gib, cpus)

    def give(self, name: str) -> None:
        self._send(name, 0, 0)
        assert self.reply() == ["gave", name]

    def _send(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()

    def reply(self) -> list[str]:
        """Return the next message of the process."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0], "no message"
        words: list[str] = json.loads(self.process.stdout.readline())
        return words

    def gets(self, name: str) -> None:
        """Wait until the process gets a grant, after any number of waits."""
        while (words := self.reply())[0] == "waits":
            pass
        assert words == ["got", name]

    def waits(self) -> str:
        word, reason = self.reply()
        assert word == "waits"
        return reason

    @property
    def silent(self) -> bool:
        """Whether the process has sent no further message."""
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
    for process in started:
        if process.process.returncode is None:
            process.kill()


@pytest.fixture
def here(root: Path) -> Admission:
    return Admission(root, ROOM)


def soon() -> dict[str, Any]:
    return {"deadline": UNSCALED.after(20)}


def now(here: Admission) -> tuple[list[str], list[str]]:
    status = here.status()
    return [claim.name for claim in status.granted], [claim.name for claim in status.waiting]


# --- grants -------------------------------------------------------------------------------------


def test_a_grant_counts_until_it_is_released(here: Admission) -> None:
    with here.admit("skiff-1", memory=2 * GIB, cpus=1.5) as grant:
        status = here.status()
        assert (status.memory, status.cpus) == (2 * GIB, 1.5)
        assert [(claim.name, claim.pid) for claim in status.granted] == [("skiff-1", os.getpid())]
        assert (grant.name, grant.memory, grant.cpus) == ("skiff-1", 2 * GIB, 1.5)
    grant.release()
    assert now(here) == ([], [])


def test_a_need_beyond_the_host_is_refused_at_once(root: Path) -> None:
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
    peer = other()
    peer.request("first", 6)
    peer.gets("first")
    needs = [Need(f"node-{n}", 2, 4 * GIB) for n in range(3)]
    reasons: list[str] = []

    def release_first(reason: str) -> None:
        reasons.append(reason)
        assert now(here) == (["first"], ["node-0, node-1, node-2"])
        peer.give("first")

    grants = here.admit_together(needs, progress=release_first, **soon())
    assert len(reasons) == 1
    assert [grant.name for grant in grants] == ["node-0", "node-1", "node-2"]
    # The host has no six virtual CPUs: the machines share its four.
    assert [grant.cpus for grant in grants] == [2, 2, 0]
    grants[1].release()
    assert now(here) == (["node-0", "node-2"], [])


def test_only_processes_without_grants_wait_for_cpus(
    here: Admission, other: Callable[[], Other]
) -> None:
    mine = here.admit("mine", memory=GIB, cpus=3)
    # A process that holds a grant does not wait for CPUs, and a grant counts only free ones.
    assert here.admit("mine-2", memory=GIB, cpus=2, **soon()).cpus == 1
    peer = other()
    peer.request("its", 1, cpus=64)
    assert "1.0 GiB and 4 CPUs" in peer.waits()
    mine.release()
    assert "1 of 4 CPUs" in peer.waits()
    assert peer.silent


def test_a_need_must_be_finite_and_not_negative() -> None:
    for wrong in ((-1.0, 1), (1.0, -1), (float("nan"), 1), (float("inf"), 1)):
        with pytest.raises(UsageError):
            Need("odd", *wrong)


# --- waiting ------------------------------------------------------------------------------------


def test_a_waiting_process_reports_the_reason_and_is_woken(
    here: Admission, other: Callable[[], Other]
) -> None:
    grant = here.admit("skiff-1", memory=14 * GIB)
    peer = other()
    peer.request("skiff-2", 2)
    reason = peer.waits()
    for word in (
        "waiting for 2.0 GiB",
        "14.0 GiB of 15.0 GiB",
        f"skiff-1 (process {os.getpid()}, 14.0 GiB)",
    ):
        assert word in reason
    grant.release()
    peer.gets("skiff-2")


def test_a_killed_process_holds_no_grant(here: Admission, other: Callable[[], Other]) -> None:
    peer = other()
    peer.request("big", 15)
    peer.gets("big")
    with here.admit("next", memory=15 * GIB, progress=lambda reason: peer.kill(), **soon()):
        assert now(here) == (["next"], [])


def test_a_child_keeps_an_inherited_grant(here: Admission, other: Callable[[], Other]) -> None:
    grant = here.admit("skiff", memory=15 * GIB)
    child = subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[grant.fileno()]
    )
    with child:
        grant.release()
        with pytest.raises(UsageError):
            grant.fileno()
        peer = other()
        peer.request("next", 15)
        assert "granted to skiff" in peer.waits()
        child.kill()
    peer.gets("next")


def test_no_request_overtakes_a_big_machine(here: Admission, other: Callable[[], Other]) -> None:
    grant = here.admit("first", memory=5 * GIB)
    big, small, smaller = other(), other(), other()
    big.request("big", 14)
    big.waits()
    small.request("small", 1)
    assert f"behind big (process {big.process.pid}, 14.0 GiB)" in small.waits()
    smaller.request("smaller", 0.5)
    assert "behind small" in smaller.waits()
    assert now(here) == (["first"], ["big", "small", "smaller"])
    assert small.silent
    assert smaller.silent
    grant.release()
    big.gets("big")
    small.gets("small")
    smaller.waits()
    assert now(here) == (["big", "small"], ["smaller"])


def test_the_line_closes_up_when_a_waiting_process_is_killed(
    here: Admission, other: Callable[[], Other]
) -> None:
    grant = here.admit("first", memory=15 * GIB)
    line = [other() for _ in range(3)]
    for number, process in enumerate(line):
        process.request(f"next-{number}", 10)
        process.waits()
    line[1].kill()
    assert "behind next-0" in line[2].waits()
    line[0].kill()
    line[2].waits()
    grant.release()
    line[2].gets("next-2")


def test_a_deadline_ends_the_wait_and_leaves_no_request(
    here: Admission, other: Callable[[], Other]
) -> None:
    peer = other()
    peer.request("hog", 15)
    peer.gets("hog")
    with pytest.raises(WaitTimeoutError, match="skiff") as caught:
        here.admit("skiff", memory=GIB, deadline=UNSCALED.after(0.05))
    assert "hog (process" in str(caught.value)
    assert now(here) == (["hog"], [])


def test_an_interrupt_leaves_no_request(here: Admission, other: Callable[[], Other]) -> None:
    peer = other()
    peer.request("hog", 15)
    peer.gets("hog")
    before = len(list(Path("/proc/self/fd").iterdir()))

    def interrupt(reason: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.admit("skiff", memory=GIB, progress=interrupt)
    assert now(here) == (["hog"], [])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- waits that would never end -----------------------------------------------------------------


def test_a_process_does_not_wait_for_itself(here: Admission) -> None:
    with (
        here.admit("one", memory=10 * GIB),
        pytest.raises(HostError, match="for ever") as caught,
    ):
        here.admit("two", memory=10 * GIB)
    assert "one (process" in str(caught.value)
    assert "together" in str(caught.value)
    assert now(here) == ([], [])


def test_a_request_that_completes_a_cycle_is_refused(
    here: Admission, other: Callable[[], Other]
) -> None:
    first, second, third = other(), other(), other()
    for process, name in ((first, "first"), (second, "second"), (third, "third")):
        process.request(name, 5)
        process.gets(name)
    first.request("first-more", 5)
    first.waits()
    # The third will release its grant, which serves the first, and then the first serves the second.
    second.request("second-more", 4)
    second.waits()
    third.request("third-more", 2)
    word, text = third.reply()
    assert word == "refused"
    assert "while others wait: first-more" in text
    third.give("third")
    first.gets("first-more")
    assert now(here) == (["first", "second", "first-more"], ["second-more"])
    first.give("first")
    second.gets("second-more")


def test_a_wait_that_others_will_end_is_no_cycle(
    here: Admission, other: Callable[[], Other]
) -> None:
    first, second = other(), other()
    first.request("first", 5)
    first.gets("first")
    second.request("second", 5)
    second.gets("second")
    here_grant = here.admit("here", memory=5 * GIB)
    first.request("first-more", 5)
    first.waits()
    second.request("second-more", 5)
    second.waits()
    here_grant.release()
    first.gets("first-more")
    second.waits()
    first.give("first")
    second.gets("second-more")


def test_a_holder_of_a_grant_goes_before_those_who_wait_for_it(
    here: Admission, other: Callable[[], Other]
) -> None:
    held = here.admit("one", memory=5 * GIB)
    big = other()
    big.request("big", 15)
    big.waits()
    here.admit("two", memory=5 * GIB, **soon()).release()
    held.release()
    big.gets("big")


def test_a_cycle_of_others_does_not_refuse_a_request(
    root: Path, other: Callable[[], Other]
) -> None:
    hog, big = other(), other()
    hog.request("hog", 2)
    hog.gets("hog")
    # With its lower limit, this process sees no way in which the big request could be served.
    small = Admission(root, replace(ROOM, memory=8 * GIB))
    with small.admit("small", memory=GIB, cpus=0, **soon()):
        big.request("big", 14)
        big.waits()
        small.admit("small-2", memory=GIB, **soon()).release()


def test_threads_of_one_process_count_as_one(here: Admission, other: Callable[[], Other]) -> None:
    peer, rival = other(), other()
    peer.request("hog", 15)
    peer.gets("hog")
    waiting, granted = threading.Semaphore(0), threading.Semaphore(0)

    def admit(name: str, gib: int) -> None:
        here.admit(name, memory=gib * GIB, cpus=0, progress=lambda _: waiting.release(), **soon())
        granted.release()

    first = threading.Thread(target=admit, args=("first", 10))
    first.start()
    assert waiting.acquire(timeout=20)
    rival.request("rival", 15)
    rival.waits()
    second = threading.Thread(target=admit, args=("second", 5))
    second.start()
    assert waiting.acquire(timeout=20)
    assert now(here) == (["hog"], ["first", "rival", "second"])
    peer.give("hog")
    # After the first grant, the second request goes before the rival, which waits for both.
    assert granted.acquire(timeout=20)
    assert granted.acquire(timeout=20)
    first.join()
    second.join()
    assert now(here) == (["first", "second"], ["rival"])


# --- the folder ---------------------------------------------------------------------------------


def test_an_unusable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError, match="cannot be used") as caught:
        Admission(tmp_path / "file" / "pool", ROOM).admit("skiff", memory=GIB)
    assert "HARNESS_CACHE" in str(caught.value)


def test_foreign_files_stay(root: Path, here: Admission) -> None:
    here.admit("skiff", memory=GIB).release()
    for name in ("README", "1+2+3", "a+b+c+d+e+f+g"):
        (root / "grants" / name).write_text("not ours")
    assert now(here) == ([], [])
    assert len(list((root / "grants").iterdir())) == 3


@pytest.mark.parametrize("name", ["a/b", "a+b", "../../x", "ü" * 300, "test[x-1]", ""])
def test_a_name_can_be_any_text(here: Admission, name: str) -> None:
    with here.admit(name, memory=GIB), here.admit(name, memory=GIB):
        assert len(here.status().granted) == 2


def test_a_gate_that_stays_locked_names_its_holder(root: Path, here: Admission) -> None:
    here.status()
    with (root / "gate").open("r+") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        gate.truncate(0)
        gate.write("4711")
        gate.flush()
        with pytest.raises(WaitTimeoutError, match="process 4711"):
            here.admit("skiff", memory=GIB, deadline=UNSCALED.after(0.05))
    # The abandoned thread acquires the lock now, and releases it at once.
    for thread in threading.enumerate():
        if thread.name == "harness-admission":
            thread.join(20)
    here.admit("skiff", memory=GIB, **soon()).release()


def test_a_copy_of_the_gate_in_a_fork_does_not_keep_it_locked(root: Path, here: Admission) -> None:
    with Board(root).gate(UNSCALED.after(20)):
        gate = next(
            int(link.name)
            for link in Path("/proc/self/fd").iterdir()
            if link.resolve() == (root / "gate").resolve()
        )
        copy = os.dup(gate)
    try:
        assert here.status(UNSCALED.after(20)).granted == ()
    finally:
        os.close(copy)


def test_a_request_and_its_grant_are_never_visible_together(
    here: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Board.gate
    seen: list[Occupancy] = []

    @contextlib.contextmanager
    def watched(self: Board, deadline: Deadline) -> Iterator[None]:
        with gate(self, deadline):
            yield
            seen.append(self.look())

    monkeypatch.setattr(Board, "gate", watched)
    with here.admit("skiff", memory=GIB):
        assert [(len(board.granted), len(board.waiting)) for board in seen] == [(1, 0)]


# --- stress -------------------------------------------------------------------------------------


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
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_a_storm_of_processes_and_kills(root: Path) -> None:
    result = run_stress("storm", root, 1, 40)
    assert result["over"] == 0
    assert result["kills"] == 40
    assert result["most"] > 10 << 10, "the storm was too weak: the host was never nearly full"
    assert (result["granted"], result["waiting"], result["files"]) == (0, 0, ["gate"])


@pytest.mark.parametrize("phase", ["granted", "waiting"])
def test_a_kill_at_any_moment_leaves_nothing(root: Path, phase: str) -> None:
    result = run_stress("sweep", root, phase)
    assert result["kills"] > 15
    assert (result["granted"], result["waiting"], result["files"]) == (0, 0, ["gate"])


# --- sizes --------------------------------------------------------------------------------------


def test_some_memory_stays_with_the_host() -> None:
    assert Limits.of(ROOM) == Limits(4.0, 15 * GIB)
    assert Limits.of(replace(ROOM, memory=2 * GIB)).memory == 1536 * MIB
    assert Limits.of(replace(ROOM, memory=256 * MIB)).memory == 0


@pytest.mark.parametrize(
    ("cpus", "memory", "count"),
    [
        (2.0, 24 * GIB, 2),
        (16.0, 24 * GIB, 9),
        (64.0, 256 * GIB, 64),
        (0.5, 24 * GIB, 1),
        (8.0, 1 * GIB, 1),
    ],
)
def test_auto_is_the_number_that_the_host_carries(cpus: float, memory: int, count: int) -> None:
    assert workers(replace(ROOM, cpus=cpus, memory=memory)) == count


def test_a_host_carries_more_small_machines() -> None:
    room = replace(ROOM, cpus=16.0)
    assert workers(room, cpus=1, memory=footprint(256 * MIB, "tcg")) == 24
    assert footprint(GIB, "kvm") < footprint(GIB, "tcg")
    # The code that QEMU keeps, and as much as it took for its heaps.
    assert footprint(GIB, "tcg") >= GIB + (argv.CODE + 100) * MIB


def test_each_boot_of_a_host_and_each_limit_has_its_own_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = tmp_path / "boot_id"
    monkeypatch.setattr(measured, "BOOT_ID", boot_id)
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
