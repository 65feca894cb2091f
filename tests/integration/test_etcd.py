"""The provider etcd against real members: processes on this host, which are killed and paused."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import Clients, Fault, History, Kind, Member, MemberStore, Outcome
from harness.cluster.etcd import Etcd
from harness.deadline import UNSCALED, Scale
from harness.errors import HistoryError, OperationRefusedError, OutcomeUnknownError
from harness.network import Addresses, Segment
from harness.scope import Scope
from tests.programs import fetch, need

NAMES = ("node-1", "node-2", "node-3")

CLUSTERS = itertools.count()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("setpriv")
    return fetch("etcd", tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segment]:
    with Segment("lan", folder=tmp_path_factory.mktemp("lan"), addresses=Addresses()) as segment:
        for name in (*NAMES, "node-4"):
            segment.add_port(name)
        yield segment


class Process:
    """A member: what the provider needs of a machine, with a process in place of one."""

    scale: Scale = UNSCALED

    def __init__(self, name: str, client: tuple[str, int], command: list[str], log: Path) -> None:
        self.name = name
        self._client = client
        self._command = command
        self._log = log
        self.start()

    def start(self) -> None:
        """Start it, or start it again with its data."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def port(self, number: int) -> tuple[str, int]:
        return self._client

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        # On a busy host its threads may go on for a while.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)


def wait_until(look: Callable[[], object], expected: object) -> None:
    limit = UNSCALED.after(120)
    while (state := look()) != expected:
        assert not limit.expired, f"{state}, and not {expected}"
        threading.Event().wait(0.1)


class Processes(dict[str, Any]):
    """The members of a cluster by name; they begin together."""

    def __init__(self, provider: Any, program: Path, folder: Path) -> None:
        super().__init__()
        self.provider = provider
        # All of 127/8 is this host's, and no other process has this id now.
        pid = os.getpid()
        host = f"127.{64 + (pid >> 16)}.{pid >> 8 & 255}.{pid & 255}"
        first = 20000 + 10 * next(CLUSTERS)
        peers = {name: f"http://{host}:{first + n}" for n, name in enumerate(NAMES)}
        for port, (name, peer) in enumerate(peers.items(), start=first + len(NAMES)):
            client = f"http://{host}:{port}"
            # It ends with this process, however that ends.
            command = ["setpriv", "--pdeathsig", "KILL", str(program)]
            command += ["--name", name, "--data-dir", str(folder / name)]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--initial-cluster", ",".join(f"{n}={url}" for n, url in peers.items())]
            command += ["--heartbeat-interval", "200", "--election-timeout", "2000"]
            # A cluster that has just formed takes no new member for 5 s otherwise.
            command += ["--strict-reconfig-check=false"]
            self[name] = Process(name, (host, port), command, folder / f"{name}.log")

    def healthy(self) -> list[str]:
        return [name for name, node in self.items() if self.provider.healthy(node)]

    def wait_healthy(self, *names: str, none: bool = False) -> None:
        """Wait until these members are healthy, and no other; all by default."""
        wait_until(self.healthy, [] if none else list(names or NAMES))

    def leader(self) -> Any:
        return self[self.provider.leader(self[self.healthy()[0]])]

    def others(self, node: Any) -> list[Any]:
        return [other for other in self.values() if other is not node]

    def at(self, name: str) -> Any:
        return self[name]

    def clients(self, history: History, **options: Any) -> Clients:
        stores = [MemberStore(self.provider, functools.partial(self.at, name)) for name in self]
        return Clients(stores, history, Scope("test"), **options)


@pytest.fixture
def provider(lan: Segment) -> Any:
    return Etcd(lan)


@pytest.fixture
def cluster(provider: Any, program: Path, tmp_path: Path) -> Iterator[Processes]:
    """Three healthy members."""
    nodes = Processes(provider, program, tmp_path)
    try:
        nodes.wait_healthy()
        yield nodes
    finally:
        for node in nodes.values():
            node.kill()


def ask(node: Any, path: str, message: object) -> Any:
    """Ask a member for something that the provider leaves to the image's command."""
    host, port = node.port(2379)
    request = urllib.request.Request(f"http://{host}:{port}{path}", json.dumps(message).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_words_of_a_healthy_cluster(cluster: Processes, provider: Any, lan: Segment) -> None:
    one, two, three = cluster.values()
    assert provider.members(two) == [Member(name) for name in NAMES]
    leaders = {provider.leader(node) for node in cluster.values()}
    assert len(leaders) == 1
    assert leaders < set(NAMES)
    provider.write(one, "key", "grün")
    assert provider.read(two, "key") == "grün"
    assert provider.read(three, "other") is None
    provider.write(two, "key", "")
    assert not provider.read(three, "key")
    # A learner that has not started yet: its name is known by its address alone.
    url = f"http://{lan.address('node-4').ip}:2380"
    ask(one, "/v3/cluster/member/add", {"peerURLs": [url], "isLearner": True})
    assert provider.members(one)[-1] == Member("node-4", voter=False)


def test_etcd_refuses_what_it_can_not_take(cluster: Processes, provider: Any) -> None:
    node = cluster["node-1"]
    with pytest.raises(OperationRefusedError, match="key is not provided"):
        provider.write(node, "", "1")
    with pytest.raises(OperationRefusedError, match="request is too large"):
        provider.write(node, "key", "x" * 1_600_000)
    assert provider.read(node, "key") is None
    assert provider.healthy(node)


def test_a_dead_a_paused_and_a_lonely_member(cluster: Processes, provider: Any) -> None:
    leader = cluster.leader()
    dead, lonely = cluster.others(leader)
    provider.write(lonely, "key", "1")
    dead.kill()
    with pytest.raises(OperationRefusedError, match="has ended"):
        provider.write(dead, "key", "2")
    cluster.wait_healthy(*(name for name in NAMES if name != dead.name))
    provider.write(lonely, "key", "3")
    leader.pause()
    # Its kernel takes the connection, as QEMU does for a paused guest. It did not take the request.
    with pytest.raises(OperationRefusedError, match="did not take the request"):
        provider.write(leader, "key", "4")
    assert not provider.healthy(leader)
    assert provider.leader(leader) is None
    cluster.wait_healthy(none=True)
    wait_until(lambda: provider.leader(lonely), None)
    assert provider.members(lonely) == [Member(name) for name in NAMES]
    with pytest.raises(OperationRefusedError, match="etcdserver: no leader"):
        provider.write(lonely, "key", "5")
    leader.resume()
    dead.start()
    cluster.wait_healthy()
    assert [provider.read(node, "key") for node in cluster.values()] == ["3"] * 3


def test_a_write_that_the_leader_takes_alone_is_unknown(cluster: Processes, provider: Any) -> None:
    for value in map(str, range(5)):
        leader = cluster.leader()
        for other in cluster.others(leader):
            other.pause()
        try:
            # It believes in itself for an election timeout; a slow test is too late for that.
            with contextlib.suppress(OperationRefusedError):
                provider.write(leader, "key", value)
        except OutcomeUnknownError as error:
            outcome = error
            break
        finally:
            for other in cluster.others(leader):
                other.resume()
            cluster.wait_healthy()
    assert "no answer" in str(outcome)
    assert provider.read(leader, "key") in (value, None)


def test_a_history_with_the_leader_killed_a_member_paused_and_a_full_stop(
    cluster: Processes, tmp_path: Path
) -> None:
    history = History(tmp_path / "history.jsonl")
    with cluster.clients(history, seed=1, count=6, rate=30) as clients:
        clients.wait_acknowledged(60)
        leader = cluster.leader()
        leader.kill()
        clients.wait_acknowledged(60)
        leader.start()
        cluster.wait_healthy()
        paused = cluster.others(cluster.leader())[0]
        paused.pause()
        clients.wait_acknowledged(60)
        paused.resume()
        cluster.wait_healthy()
        for node in cluster.values():
            node.kill()
        assert cluster.healthy() == []
        for node in cluster.values():
            node.start()
        cluster.wait_healthy()
        clients.wait_acknowledged(60)
    history.check()
    outcomes = {(op.kind, op.outcome) for op in history.operations}
    assert (Kind.WRITE, Outcome.FAILED) in outcomes
    # Each member served, and the last reads are of all three.
    last = [op.outcome for op in history.operations[-9:]]
    assert last == [Outcome.OK] * 9


class Early(Etcd):
    """Acknowledges a write before it is stored, and stores it from a thread, through one member."""

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        self._writes: queue.SimpleQueue[tuple[Any, str, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._store, daemon=True)
        self._thread.start()

    def write(self, machine: Any, key: str, value: str) -> None:
        self._writes.put((machine, key, value))

    def _store(self) -> None:
        while (write := self._writes.get()) is not None:
            with contextlib.suppress(OperationRefusedError, OutcomeUnknownError):
                super().write(*write)

    def end(self) -> None:
        self._writes.put(None)
        self._thread.join()


def test_a_provider_that_acknowledges_before_it_stores_is_noticed(
    lan: Segment, program: Path, tmp_path: Path
) -> None:
    provider = Early(lan)
    cluster = Processes(provider, program, tmp_path)
    history = History(tmp_path / "history.jsonl")
    try:
        cluster.wait_healthy()
        leader = cluster.leader()
        with cluster.clients(history, seed=1, count=3, rate=20) as clients:
            clients.wait_acknowledged(60)
            leader.kill()
            clients.wait_acknowledged(60)
            leader.start()
            cluster.wait_healthy()
            clients.wait_acknowledged(30)
    finally:
        provider.end()
        for node in cluster.values():
            node.kill()
    with pytest.raises(HistoryError, match="the cluster broke its promise"):
        history.check()
    faults = {violation.fault for violation in history.examine().violations}
    assert faults & {Fault.LOST, Fault.STALE}
