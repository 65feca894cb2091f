"""A segment and its process; socket pairs stand in for the machines."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from harness.errors import SegmentError, UnknownNameError, UsageError
from harness.network import Impairment, Segment, SegmentState, Vlan
from harness.network import process as serving
from harness.network.process import ROUND
from harness.scope import Scope
from tests.programs import need

BROADCAST = b"\xff" * 6
PATIENCE = 60.0
"""Seconds for what takes none: a busy host makes no test red."""


def mac(name: str) -> bytes:
    """Return the address of a machine."""
    return b"\x52\x54\x00\x00\x00" + name[:1].encode()


def frame(source: str, target: str = "", payload: bytes = b"") -> bytes:
    """Return a frame; without a target to all."""
    to = mac(target) if target else BROADCAST
    return to + mac(source) + b"\x88\xb5" + payload.ljust(46, b"\0")


class Lan:
    """A segment with machines."""

    def __init__(self, segment: Segment, *names: str) -> None:
        self.segment = segment
        self.ends: dict[str, socket.socket] = {}
        for name in names:
            self.attach(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends.values():
            end.close()
        for end in self.ends.values():
            end.close()

    def attach(self, name: str) -> None:
        end = self.ends[name] = self.segment.attach(name)
        end.settimeout(PATIENCE)

    def learn(self) -> None:
        """Let the switch learn where all are."""
        for name, end in self.ends.items():
            end.send(frame(name))
            for other in self.ends:
                if other != name:
                    assert self.receive(other) == frame(name)

    def receive(self, name: str) -> bytes:
        return self.ends[name].recv(65536)

    def waiting(self, name: str, settle: str) -> list[bytes]:
        """Return what a machine has; ``settle`` is another one, which sends it a last frame."""
        end = frame(settle, name, b"last")
        self.ends[settle].send(end)
        got = []
        while (content := self.receive(name)) != end:
            got.append(content)
        return got


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Segment("lan", folder=tmp_path, seed=7) as segment, Lan(segment, "a", "b", "c") as lan:
        lan.learn()
        yield lan


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        select.select([], [], [], 0.01)


def names(folder: Path) -> list[str]:
    """Return the names of a folder's files."""
    return sorted(path.name for path in folder.iterdir())


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


# --- frames -------------------------------------------------------------------------------------------


def test_frames_pass_between_machines(lan: Lan) -> None:
    lan.ends["a"].send(frame("a", "b", b"to b"))
    assert lan.receive("b") == frame("a", "b", b"to b")
    large = frame("b", "a", b"x" * 9000)
    lan.ends["b"].send(large)
    assert lan.receive("a") == large
    assert lan.waiting("c", "a") == []
    ports = lan.segment.counters().ports
    assert (ports["a"].received, ports["a"].sent) == (3, 3)
    assert ports["a"].sent_bytes == len(large) + 2 * 60
    assert lan.segment.ports == ("a", "b", "c")


def lost(lan: Lan, count: int = 2000) -> list[int]:
    """Send numbered frames from one machine to another; return the numbers that did not arrive.

    A few are on their way at a time: those that a slow reader lets overflow are dropped rightly.
    """
    number = len(frame("a", "b"))
    arrived: list[int] = []
    window = threading.Semaphore(100)

    def receive() -> None:
        while (content := lan.receive("b"))[number:] != b"last":
            arrived.append(int(content[number:]))
            window.release()

    reader = threading.Thread(target=receive)
    reader.start()
    for each in range(count):
        assert window.acquire(timeout=PATIENCE)
        lan.ends["a"].send(frame("a", "b") + str(each).encode())
    lan.ends["a"].send(frame("a", "b") + b"last")
    reader.join()
    assert arrived == sorted(arrived)
    return sorted(set(range(count)) - set(arrived))


def test_a_good_segment_loses_no_frame(lan: Lan) -> None:
    assert lost(lan) == []


def test_one_frame_in_a_thousand_that_is_dropped_silently_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from harness.network import process\n"
        "put, n = process._Socket.put, 0\n"
        "def drops(self, frame):\n"
        "    global n; n += 1\n"
        "    return True if n % 1000 == 0 else put(self, frame)\n"
        "process._Socket.put = drops\n"
        "process.main(int(sys.argv[2]), int(sys.argv[3]))"
    )
    command = serving.command

    def planted(control: int) -> tuple[str, ...]:
        python, isolated, bare, option, _, *arguments = command(control)
        return (python, isolated, bare, option, code, *arguments)

    monkeypatch.setattr(serving, "command", planted)
    with Segment("lan", folder=tmp_path) as segment, Lan(segment, "a", "b") as lan:
        lan.learn()
        assert len(lost(lan)) == 2
        # The switch believes that it handed them over: only the machines can tell.
        assert segment.counters().ports["b"].sent > 2000


def test_an_empty_and_a_huge_frame_do_no_harm(lan: Lan) -> None:
    lan.ends["a"].send(b"")
    lan.ends["a"].send(b"x" * 60_000)
    lan.ends["a"].send(frame("a", "b", b"after"))
    assert lan.receive("b") == frame("a", "b", b"after")
    assert lan.segment.counters().ports["a"].malformed == 1


def test_vlans_are_kept_apart(tmp_path: Path) -> None:
    with Segment("lan", folder=tmp_path) as segment, Lan(segment, "a") as lan:
        segment.add_port("a", vlan=Vlan.access(10))
        segment.add_port("b", vlan=Vlan.access(20))
        segment.add_port("c", vlan=Vlan.trunk([10, 20]))
        lan.attach("b")
        lan.attach("c")
        lan.ends["a"].send(frame("a"))
        assert lan.receive("c")[12:16] == b"\x81\x00\x00\x0a"
        lan.ends["b"].send(frame("b"))
        assert lan.receive("c")[12:16] == b"\x81\x00\x00\x14"
        assert lan.segment.counters().ports["b"].sent == 0


# --- faults -------------------------------------------------------------------------------------------


def test_a_partition_parts_groups_until_it_is_healed(lan: Lan) -> None:
    with lan.segment.partition("a", ["b"]):
        lan.ends["a"].send(frame("a", payload=b"to all"))
        assert lan.receive("c") == frame("a", payload=b"to all")
        assert lan.waiting("b", "c") == []
        lan.ends["b"].send(frame("b", "a"))
        assert lan.waiting("a", "c") == []
    assert lan.waiting("b", "a") == []
    lan.ends["b"].send(frame("b", "a", b"back"))
    assert lan.receive("a") == frame("b", "a", b"back")
    assert lan.segment.counters().links["a", "b"].cut == 1


def test_each_change_of_the_links_is_in_the_evidence(tmp_path: Path) -> None:
    with Segment("lan", folder=tmp_path) as segment, Lan(segment, "a", "b"):
        with segment.partition("a", "b", one_way=True):
            segment.link("a", "b").impair(loss=0.5)
        segment.heal()
    entries = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [each["do"] for each in entries] == ["cut", "impair", "heal", "heal"]
    assert entries[0]["links"] == [["a", "b"]]
    assert entries[0]["fault"] == entries[2]["fault"]
    assert entries[3]["fault"] is None
    assert entries[1]["impairment"]["loss"] == 0.5
    times = [each["t"] for each in entries]
    assert times == sorted(times)


def test_a_partition_of_three_and_one_that_is_one_way(lan: Lan) -> None:
    lan.segment.partition("a", "b", "c")
    for name in "abc":
        lan.ends[name].send(frame(name))
    wait_for(lambda: all(p.received == 2 for p in lan.segment.counters().ports.values()))
    lan.segment.heal()
    assert [lan.waiting("a", "b"), lan.waiting("b", "c"), lan.waiting("c", "a")] == [[], [], []]
    with lan.segment.partition("a", "b", one_way=True):
        lan.ends["a"].send(frame("a", "b", b"lost"))
        lan.ends["b"].send(frame("b", "a", b"passes"))
        assert lan.receive("a") == frame("b", "a", b"passes")
        assert lan.waiting("b", "c") == []


def test_a_link_has_two_directions(lan: Lan) -> None:
    link = lan.segment.link("a", "b")
    link.forward.cut()
    lan.ends["b"].send(frame("b", "a"))
    lan.ends["a"].send(frame("a", "b"))
    assert lan.receive("a") == frame("b", "a")
    assert lan.waiting("b", "c") == []
    lan.segment.heal()
    lan.segment.link("a").backward.impair(loss=1)
    lan.ends["b"].send(frame("b", "a"))
    lan.ends["a"].send(frame("a", "b", b"out"))
    assert lan.receive("b") == frame("a", "b", b"out")
    counters = lan.segment.counters().links
    assert counters[None, "a"].lost == 1
    lan.segment.link("a").impair()
    assert lan.waiting("a", "b") == []


def test_the_same_seed_has_the_same_faults_at_the_same_frames(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> list[bytes]:
        with (
            Segment(name, folder=tmp_path, seed=seed) as segment,
            Lan(segment, "a", "b", "c") as lan,
        ):
            lan.learn()
            segment.link("a", "b").impair(loss=0.1, duplicate=0.1, corrupt=0.1, reorder=0.1)
            for number in range(300):
                lan.ends["a"].send(frame("a", "b", b"%d" % number))
                if name != "calm":
                    lan.ends["c"].send(frame("c", "a"))
            wait_for(lambda: segment.counters().ports["a"].received == 301)
            # The next frame, which ends the wait below, is not judged.
            segment.link("a", "b").impair()
            wait_for(lambda: sum(_arrived(segment)) == 300)
            return lan.waiting("b", "c")

    def _arrived(segment: Segment) -> tuple[int, ...]:
        link = segment.counters().links["a", "b"]
        return link.carried - link.duplicated, link.lost

    first = run("calm", 1)
    assert 200 < len(set(first)) < 290
    assert run("busy", 1) == first
    assert run("other", 2) != first


def test_a_slow_link_is_slow_by_its_delay_and_no_more(lan: Lan) -> None:
    def best(tries: int = 20) -> float:
        times = []
        for number in range(tries):
            started = time.monotonic()
            lan.ends["a"].send(frame("a", "b", b"%d" % number))
            lan.receive("b")
            times.append(time.monotonic() - started)
        return min(times)

    direct = best()
    lan.segment.link("a", "b").impair(delay=0.02)
    assert best() >= 0.02
    assert direct < 0.02  # the best of twenty, which takes 0.00002 on a calm host


def test_a_flapping_link_carries_what_comes_while_it_is_up(lan: Lan) -> None:
    with lan.segment.link("a", "b").flap(up=0.05, down=0.05):
        link = None
        while link is None or not (link.cut and link.carried):
            lan.ends["a"].send(frame("a", "b"))
            link = lan.segment.counters().links["a", "b"]
    assert link.cut


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda s: s.link("a", "d"), UnknownNameError, "unknown port 'd'"),
        (lambda s: s.link("a", "a"), UsageError, "not a and itself"),
        (lambda s: s.link("a").impair(loss=1.01), UsageError, r"not 1.01 \(101 %\)"),
        (lambda s: s.link("a").impair(lossy=1), UnknownNameError, "unknown impairment 'lossy'"),
        (lambda s: s.link("a").impair(Impairment(), loss=1), UsageError, "but not both"),
        (lambda s: s.link("a").flap(up=-1, down=1), UsageError, "up for more than 0"),
        (lambda s: s.partition("a"), UsageError, "at least two groups"),
        (lambda s: s.partition("a", []), UsageError, "none is empty"),
        (lambda s: s.partition(["a", "b"], ["b"]), UsageError, "but b is in two"),
        (lambda s: s.partition("a", "x"), UnknownNameError, "unknown port 'x'"),
        (lambda s: s.attach("a"), UsageError, "port a of segment lan has a machine"),
        (lambda s: s.attach("A/b"), UsageError, "'A/b' is not a valid port name"),
        (lambda s: s.attach("d", mac="52:54:00:00:00"), UsageError, "not the MAC address"),
        (lambda s: s.attach("d", mac="53:54:00:00:00:01"), UsageError, "not the MAC address"),
    ],
)
def test_bad_input_is_refused_and_the_segment_lives_on(
    lan: Lan, do: Callable[[Segment], object], error: type[UsageError], message: str
) -> None:
    with pytest.raises(error, match=message):
        do(lan.segment)
    assert lan.waiting("b", "a") == []


def test_one_mac_address_is_not_attached_twice(lan: Lan) -> None:
    same = "e and d on segment lan have the same MAC address"
    with (
        lan.segment.attach("d", mac="52:54:00:AA:00:01"),
        pytest.raises(UsageError, match=same),
    ):
        lan.segment.attach("e", mac="52:54:00:aa:00:01")
    with lan.segment.attach("d", mac="52:54:00:aa:00:01"):
        pass


def test_machines_that_start_at_the_same_time_do_not_share_a_mac_address(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = lan.segment._connect
    both = threading.Barrier(2)

    def slowly(name: str) -> socket.socket:
        # Both are past the check of the address, or only one is and the other waits for it.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)
        return connect(name)

    monkeypatch.setattr(lan.segment, "_connect", slowly)
    ends: list[socket.socket] = []
    refused: list[UsageError] = []

    def attach(name: str) -> None:
        try:
            ends.append(lan.segment.attach(name, mac="52:54:00:aa:00:01"))
        except UsageError as error:
            refused.append(error)

    threads = [threading.Thread(target=attach, args=(name,)) for name in "de"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for end in ends:
        end.close()
    assert (len(ends), len(refused)) == (1, 1)


def test_a_link_is_impaired_before_its_machines_are_there(tmp_path: Path) -> None:
    with Segment("lan", folder=tmp_path) as segment:
        for name in "ab":
            segment.add_port(name)
        segment.link("a", "b").forward.cut()
        with Lan(segment, "a", "b") as lan:
            lan.ends["a"].send(frame("a"))
            lan.ends["b"].send(frame("b"))
            assert lan.receive("a") == frame("b")
            wait_for(lambda: segment.counters().links["a", "b"].cut == 1)


@pytest.mark.parametrize("name", ["x" * 32, "", "Lan", "../x"])
def test_a_name_that_is_not_valid_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid segment name"):
        Segment(name, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- machines that go, come and flood --------------------------------------------------------------


def test_who_is_up_is_answered_as_it_is_now(lan: Lan) -> None:
    """Also where the question comes before the machine goes, and both wait for the process."""
    answers: list[frozenset[str]] = []
    os.kill(lan.segment.pid, signal.SIGSTOP)
    asking = threading.Thread(target=lambda: answers.append(lan.segment.counters().up))
    try:
        asking.start()
        # The order is in the socket: SIOCOUTQ counts what the process has not read.
        wait_for(lambda: serving._untaken(lan.segment._control) > 0)
        lan.ends["b"].close()
    finally:
        os.kill(lan.segment.pid, signal.SIGCONT)
    asking.join(PATIENCE)
    assert answers == [frozenset({"a", "c"})]


def test_a_machine_goes_and_comes_back_to_its_port(lan: Lan) -> None:
    lan.segment.link("b").impair(loss=1)
    lan.ends["b"].close()
    assert "b" not in lan.segment.counters().up
    lan.ends["a"].send(frame("a", "b"))
    assert lan.waiting("c", "a")[-1:] == [frame("a", "b")]  # its address is forgotten
    lan.attach("b")
    lan.ends["a"].send(frame("a", "b"))
    lan.waiting("c", "a")  # so the one before has passed
    lan.segment.link("b").impair()
    lan.ends["b"].send(frame("b"))
    assert lan.receive("a") == frame("b")
    counters = lan.segment.counters()
    assert counters.links[None, "b"].lost >= 1
    assert counters.ports["b"].received == 2


def test_a_port_is_free_as_soon_as_its_machine_is_gone(lan: Lan) -> None:
    for _ in range(50):
        lan.ends["b"].close()
        lan.attach("b")
        lan.ends["b"].send(frame("b", "a"))
        assert lan.receive("a") == frame("b", "a")


FLOOD = """
import socket, sys
end = socket.socket(fileno=int(sys.argv[1]))
frame = bytes.fromhex(sys.argv[2])
print("begins", flush=True)
while True:
    end.send(frame)
"""


@pytest.fixture
def flood(lan: Lan) -> Iterator[Callable[[bytes], None]]:
    """Let machine c send a frame as fast as it can."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(content: bytes) -> None:
        descriptor = lan.ends["c"].fileno()
        # Both processes share the flag: the first send must find it.
        lan.ends["c"].setblocking(True)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", FLOOD, str(descriptor), content.hex()],
            pass_fds=[descriptor],
            stdout=subprocess.PIPE,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_ports_have_their_turns(lan: Lan) -> None:
    lan.segment.pause()
    lan.ends["a"].setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            lan.ends["a"].send(frame("a", "b"))
            count += 1
    lan.ends["c"].send(frame("c", "b"))
    lan.segment.resume()
    got = [lan.receive("b") for _ in range(count + 1)]
    assert got.index(frame("c", "b")) <= 2 * ROUND < 100 < count


@pytest.mark.parametrize("target", ["", "b", "x"])
def test_a_flood_starves_no_other(lan: Lan, flood: Callable[[bytes], None], target: str) -> None:
    flood(frame("c", target, b"x" * 1400))
    wait_for(lambda: lan.segment.counters().ports["c"].received > 2000)
    for number in range(200):
        lan.ends["a"].send(frame("a", "b", b"%d" % number))
        while lan.receive("b") != frame("a", "b", b"%d" % number):
            pass
    # All 200 have arrived: b lost none of a's frames behind those of c.
    assert lan.segment.counters().ports["a"].received == 201


def test_a_machine_that_reads_nothing_harms_itself_alone(
    lan: Lan, flood: Callable[[bytes], None]
) -> None:
    flood(frame("c", "b", b"x" * 1400))
    wait_for(lambda: lan.segment.counters().ports["b"].overflowed > 10_000)
    memory = _memory(lan.segment.pid)
    seen = lan.segment.counters().ports["b"].overflowed
    wait_for(lambda: lan.segment.counters().ports["b"].overflowed > seen + 20_000)
    assert _memory(lan.segment.pid) - memory < 8 * 1024 * 1024
    lan.ends["a"].send(frame("a", "a2"))  # a and its switch live on
    wait_for(lambda: lan.segment.counters().ports["a"].received == 2)


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


# --- its process --------------------------------------------------------------------------------------


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    segment = Segment("lan", folder=tmp_path)
    end = segment.attach("a")
    segment.close()
    segment.close()
    assert gone(segment.pid)
    assert end.recv(1) == b""
    end.close()
    with pytest.raises(SegmentError, match="is closed"):
        segment.counters()
    assert names(tmp_path) == ["lan.stderr"]
    assert (tmp_path / "lan.stderr").read_text() == ""


def test_its_death_fails_the_scope_and_every_later_word(tmp_path: Path) -> None:
    scope = Scope("test")
    with Segment("lan", folder=tmp_path, scope=scope) as segment, scope.alarm() as alarm:
        end = segment.attach("a")
        os.kill(segment.pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(alarm, 0)
        assert poll.poll(PATIENCE * 1000)
        with pytest.raises(SegmentError, match=r"ended under its machines \(killed by signal 9\)"):
            scope.check()
        with pytest.raises(SegmentError, match="ended under its machines"):
            segment.counters()
        assert end.recv(1) == b""
        end.close()
    assert gone(segment.pid)


OWNER = """
import os, signal, sys
from pathlib import Path
from harness.network import Segment
segment = Segment("lan", folder=Path(sys.argv[1]), capture=True)
end = segment.attach("a")
if sys.argv[2] == "heir":
    # A child that inherits all, so that no socket hangs up.
    if not os.fork():
        os.close(1)
        signal.pause()
print(segment.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("heir", ["", "heir"])
def test_it_ends_when_its_owner_is_killed(tmp_path: Path, heir: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OWNER, str(tmp_path), heir],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as owner:
        try:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            watch = os.pidfd_open(pid)
            owner.kill()
            assert select.select([watch], [], [], PATIENCE)[0]
            os.close(watch)
        finally:
            # The heir is in the owner's session.
            os.killpg(owner.pid, signal.SIGKILL)
    assert names(tmp_path) == ["lan.pcapng", "lan.stderr"]
    assert (tmp_path / "lan.stderr").read_text() == ""


def test_an_order_that_fails_is_an_error_and_the_segment_lives_on(lan: Lan) -> None:
    with pytest.raises(SegmentError, match="refuses 'attach'") as caught:
        lan.segment._order("attach", port="z")
    assert "IndexError" in caught.value.evidence
    assert lan.waiting("b", "a") == []


def test_orders_of_many_threads_do_not_mix(lan: Lan) -> None:
    def order(number: int) -> None:
        for _ in range(50):
            with lan.segment.link("a", "bc"[number % 2]).cut():
                lan.segment.counters()

    threads = [threading.Thread(target=order, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lan.waiting("b", "a") == []


# --- fork ---------------------------------------------------------------------------------------------


def test_a_paused_segment_moves_nothing_and_its_time_stands_still(lan: Lan) -> None:
    lan.segment.link("a", "b").impair(delay=0.2)
    lan.ends["a"].send(frame("a", "b", b"slow"))
    wait_for(lambda: lan.segment.counters().ports["a"].received == 2)
    lan.segment.pause()
    lan.ends["c"].send(frame("c", "b", b"sent in the pause"))
    lan.ends["b"].settimeout(0.5)
    with pytest.raises(TimeoutError):
        lan.receive("b")
    lan.segment.resume()
    lan.ends["b"].settimeout(PATIENCE)
    assert lan.receive("b") == frame("c", "b", b"sent in the pause")
    assert lan.receive("b") == frame("a", "b", b"slow")


def test_a_segment_stands_still_in_a_block_and_no_longer(lan: Lan) -> None:
    with lan.segment.standing_still():
        lan.ends["c"].send(frame("c", "b", b"first"))
    assert lan.receive("b") == frame("c", "b", b"first")
    lan.segment.pause()
    with lan.segment.standing_still():
        lan.ends["c"].send(frame("c", "b", b"second"))
    lan.ends["b"].settimeout(0.5)
    with pytest.raises(TimeoutError):
        lan.receive("b")  # it was paused before the block
    lan.segment.resume()
    assert lan.receive("b") == frame("c", "b", b"second")


def test_a_pause_waits_until_machines_have_taken_what_was_handed_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is in a socket is lost to a fork: nobody but the machine can read it."""
    control, theirs = socket.socketpair()
    end, machine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control, theirs, machine:
        server = serving._Server(theirs, os.getpid())
        server._descriptors.append(end.detach())
        server._do_attach("a")
        (attached,) = server._sockets.values()
        assert attached.put(frame("b", "a"))
        monkeypatch.setattr(serving, "SETTLE", PATIENCE)
        pausing = threading.Thread(target=server._do_pause)
        pausing.start()
        pausing.join(0.2)
        assert pausing.is_alive()
        assert machine.recv(65536) == frame("b", "a")
        pausing.join(PATIENCE)
        assert not pausing.is_alive()
        server._do_resume()
        # A machine that is stopped takes nothing, and does not hold up the others.
        assert attached.put(frame("b", "a"))
        monkeypatch.setattr(serving, "SETTLE", 0.0)
        assert server._do_pause()
        attached.socket.close()


def test_a_saved_segment_goes_on_in_a_fork(lan: Lan, tmp_path: Path) -> None:
    segment = lan.segment
    segment.link("a", "b").impair(delay=0.1, loss=0.2)
    segment.partition("b", "c")
    for number in range(20):
        lan.ends["a"].send(frame("a", "b", b"%d" % number))
    wait_for(lambda: segment.counters().ports["a"].received == 21)
    segment.pause()
    lan.ends["c"].send(frame("c", "a", b"in the socket"))
    folder = tmp_path / "saved"
    folder.mkdir()
    segment.save().write(folder)
    assert names(folder) == ["segment.frames", "segment.json"]

    with (
        Segment("fork", folder=tmp_path, state=SegmentState.read(folder)) as forked,
        Lan(forked, "a", "b", "c") as fork,
    ):
        assert forked.seed == segment.seed
        forked.resume()
        segment.resume()
        fork.ends["a"].send(frame("a", "b", b"last"))
        lan.ends["a"].send(frame("a", "b", b"last"))
        for one in (lan, fork):
            assert one.receive("a") == frame("c", "a", b"in the socket")
            one.ends["c"].send(frame("c"))
            assert one.receive("a") == frame("c")
        both = []
        for one in (lan, fork):
            got: list[bytes] = []
            while not got or got[-1] != frame("a", "b", b"last"):
                got.append(one.receive("b"))
            both.append(got)
        assert both[0] == both[1]
        assert 10 < len(both[0]) < 21
        # Addresses are known, and faults can be healed.
        assert fork.waiting("c", "a") == []
        forked.heal()
        fork.ends["c"].send(frame("c", "b", b"healed"))
        assert fork.receive("b") == frame("c", "b", b"healed")


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegmentError, match="does not hold a segment"):
        SegmentState.read(tmp_path)
    (tmp_path / "segment.frames").touch()
    (tmp_path / "segment.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(SegmentError, match="has format 99, not 1"):
        SegmentState.read(tmp_path)
    state = SegmentState({"ports": {}, "addresses": None, "switch": {"seed": 1}}, b"")
    with pytest.raises(SegmentError, match="refuses 'begin'"):
        Segment("lan", folder=tmp_path, state=state)


# --- capture ------------------------------------------------------------------------------------------


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """Return fields of all frames of a capture."""
    need("tshark")
    words = [word for field in fields for word in ("-e", field)]
    process = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [line.split("\t") for line in process.stdout.splitlines()]


def test_tshark_reads_a_capture(tmp_path: Path) -> None:
    before = time.time()
    with Segment("lan", folder=tmp_path, capture=True) as segment, Lan(segment, "a", "b") as lan:
        lan.learn()
        lan.ends["a"].send(frame("a", "b", b"odd length" * 10 + b"!"))
        lan.receive("b")
        segment.link("a", "b").impair(loss=1)
        lan.ends["a"].send(frame("a", "b"))
        wait_for(lambda: segment.counters().links["a", "b"].lost == 1)
        assert segment.capture == tmp_path / "lan.pcapng"
    rows = tshark(
        tmp_path / "lan.pcapng",
        *("frame.interface_name", "frame.packet_flags_direction", "frame.len", "frame.comment"),
        *("eth.src", "frame.time_epoch"),
    )
    assert [row[:5] for row in rows] == [
        ["a", "0x00000001", "60", "", "52:54:00:00:00:61"],
        ["b", "0x00000002", "60", "", "52:54:00:00:00:61"],
        ["b", "0x00000001", "60", "", "52:54:00:00:00:62"],
        ["a", "0x00000002", "60", "", "52:54:00:00:00:62"],
        ["a", "0x00000001", "115", "", "52:54:00:00:00:61"],
        ["b", "0x00000002", "115", "", "52:54:00:00:00:61"],
        ["a", "0x00000001", "60", "", "52:54:00:00:00:61"],
        ["a", "0x00000001", "60", "a>b: lost, number 0", "52:54:00:00:00:61"],
    ]
    assert all(before <= float(row[5]) <= time.time() for row in rows)


def test_a_capture_keeps_its_limit_and_the_last_frames(tmp_path: Path) -> None:
    with (
        Segment("lan", folder=tmp_path, capture=True, capture_limit=100_000) as segment,
        Lan(segment, "a", "b") as lan,
    ):
        lan.learn()
        for number in range(300):
            lan.ends["a"].send(frame("a", "b", b"%d" % number * 300))
            lan.receive("b")
    files = sorted(tmp_path.glob("*.pcapng"))
    assert [file.name for file in files] == ["lan.old.pcapng", "lan.pcapng"]
    assert 50_000 < sum(file.stat().st_size for file in files) < 105_000
    for file in files:
        rows = tshark(file, "frame.interface_name", "data.data")
        assert {row[0] for row in rows} == {"a", "b"}
    assert rows[-1][1].startswith(b"299299".hex())


def test_a_capture_is_whole_when_its_process_is_killed(tmp_path: Path) -> None:
    with Segment("lan", folder=tmp_path, capture=True) as segment, Lan(segment, "a", "b") as lan:
        lan.learn()
        wait_for(lambda: (tmp_path / "lan.pcapng").stat().st_size > 400)
        os.kill(segment.pid, signal.SIGKILL)
    assert len(tshark(tmp_path / "lan.pcapng", "frame.len")) == 4


def test_a_full_disk_ends_the_capture_and_not_the_segment(tmp_path: Path) -> None:
    (tmp_path / "lan.pcapng").symlink_to("/dev/full")
    with Segment("lan", folder=tmp_path, capture=True) as segment, Lan(segment, "a", "b") as lan:
        lan.learn()
        lan.learn()
        assert "No space left" in segment.counters().capture_error
