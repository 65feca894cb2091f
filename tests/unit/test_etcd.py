"""The provider etcd against a scripted server and a scripted shell: what each outcome proves."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import Member, Provider, providers
from harness.cluster.etcd import NEVER_APPLIED, Etcd
from harness.deadline import Limit
from harness.errors import (
    CommandError,
    ConnectionLostError,
    JoinRefusedError,
    OperationRefusedError,
    OutcomeUnknownError,
    PanicError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
)
from harness.network import Addresses, Segment
from harness.result import Result
from tests.unit.scripted_members import (
    Node,
    Script,
    Server,
    answering,
    reset,
    take,
    take_head,
    until_client_ends,
)

HEADER = {"cluster_id": "1", "member_id": "10", "revision": "5", "raft_term": "2"}


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segment]:
    with Segment("lan", folder=tmp_path_factory.mktemp("lan"), addresses=Addresses()) as segment:
        for name in ("node-1", "node-2", "node-3"):
            segment.add_port(name)
        yield segment


@pytest.fixture
def etcd(lan: Segment, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("harness.cluster.etcd._ELECTION", 0.2)
    return Etcd(lan)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Any, Server]]]:
    servers = []

    def serve(*scripts: Script) -> tuple[Any, Server]:
        servers.append(Server(*scripts))
        return Node(servers[-1].address), servers[-1]

    yield serve
    for server in servers:
        server.close()


# --- scripts ------------------------------------------------------------------------------------------


def failing(text: str, code: int = 14, status: str = "503 Service Unavailable") -> Script:
    return answering({"error": text, "message": text, "code": code}, status)


def closes_at_once(connection: socket.socket, request: dict[str, Any]) -> None:
    """As QEMU's user-mode network does when the port of the guest is closed."""


def resets_at_once(connection: socket.socket, request: dict[str, Any]) -> None:
    take_head(connection, request)
    reset(connection)


def says_nothing(connection: socket.socket, request: dict[str, Any]) -> None:
    """As a paused guest does."""
    take_head(connection, request)
    until_client_ends(connection)


def answers_without_permission(connection: socket.socket, request: dict[str, Any]) -> None:
    take_head(connection, request)
    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    until_client_ends(connection)


def permits_without_end(connection: socket.socket, request: dict[str, Any]) -> None:
    take_head(connection, request)
    connection.sendall(b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * 500)
    until_client_ends(connection)


def takes_and_closes(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)


def takes_and_resets(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)
    reset(connection)


def takes_and_says_nothing(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)
    until_client_ends(connection)


def takes_and_trickles(connection: socket.socket, request: dict[str, Any]) -> None:
    """Each byte comes in time, the answer never."""
    take(connection, request)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    connection.settimeout(0.01)
    while True:
        connection.sendall(b" ")
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            pass


def takes_and_cuts_the_answer(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"header": {}}')


def takes_and_raves(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)
    connection.sendall(b"\xff\x00 200\r\n" * 10)


def takes_and_floods(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(100):
        connection.sendall(b"x" * 65536)


def takes_and_sends_bad_chunks(connection: socket.socket, request: dict[str, Any]) -> None:
    take(connection, request)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")


# --- outcomes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        closes_at_once,
        resets_at_once,
        says_nothing,
        answers_without_permission,
        permits_without_end,
    ],
)
def test_a_request_that_was_not_taken_had_no_effect(etcd: Any, serve: Any, script: Script) -> None:
    node, server = serve(script, script)
    with pytest.raises(OperationRefusedError):
        etcd.write(node, "a", "1")
    with pytest.raises(OperationRefusedError):
        etcd.read(node, "a")
    # That is the proof: the server does not know the key.
    assert [request["body"] for request in server.requests] == [b"", b""]


@pytest.mark.parametrize(
    "script",
    [
        takes_and_closes,
        takes_and_resets,
        takes_and_says_nothing,
        takes_and_trickles,
        takes_and_cuts_the_answer,
        takes_and_raves,
        takes_and_floods,
        takes_and_sends_bad_chunks,
        answering(b"Ok!"),
        answering(b"[" * 100_000),
        answering([]),
        answering({}),
        answering({"header": "yes"}),
        answering(b"<html>", "502 Bad Gateway"),
        answering({"code": 2}, "500 Internal Server Error"),
        failing("etcdserver: request timed out"),
        failing("etcdserver: request timed out, possibly due to previous leader failure"),
        failing("etcdserver: request timed out, possibly due to connection lost"),
        failing("etcdserver: server stopped"),
        failing("etcdserver: leader changed"),
        failing("etcdserver: mvcc: database space exceeded", 8, "429 Too Many Requests"),
        failing("context deadline exceeded", 4, "504 Gateway Timeout"),
        failing("no leader"),
        failing("something: etcdserver: no leader"),
    ],
)
def test_a_request_that_was_taken_may_have_had_its_effect(
    etcd: Any, serve: Any, script: Script
) -> None:
    node, server = serve(script)
    with pytest.raises(OutcomeUnknownError):
        etcd.write(node, "a", "1")
    assert server.requests[0]["body"]


@pytest.mark.parametrize("text", sorted(NEVER_APPLIED))
def test_an_answer_of_etcd_that_proves_that_nothing_was_applied(
    etcd: Any, serve: Any, text: str
) -> None:
    node, _ = serve(failing(text), answering({"code": 14, "message": text}, "503 Unavailable"))
    for _ in range(2):
        with pytest.raises(OperationRefusedError, match=text):
            etcd.write(node, "a", "1")


def test_a_closed_port_and_a_machine_that_has_ended(etcd: Any, serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        node: Any = Node(other.getsockname()[:2])
    with pytest.raises(OperationRefusedError, match="no connection"):
        etcd.write(node, "a", "1")
    node.running = False
    with pytest.raises(OperationRefusedError, match="node-1 has ended"):
        etcd.read(node, "a")
    assert not etcd.healthy(node)
    assert not etcd.holds(node)
    assert etcd.leader(node) is None


def test_a_port_that_went_to_another_process_is_not_written_to(etcd: Any, serve: Any) -> None:
    """The machine ends just before the connection, and another one binds its port."""
    node, server = serve(takes_and_says_nothing)

    class Ending(Node):
        looks = 0

        @property
        def running(self) -> bool:
            self.looks += 1
            return self.looks < 2

        @running.setter
        def running(self, value: bool) -> None:
            pass

    with pytest.raises(OperationRefusedError, match="the machine has ended"):
        etcd.write(Ending(node.address), "a", "1")
    server.close()
    # The server may not even have noticed the connection.
    assert not any(request["body"] for request in server.requests)


def test_a_write_and_a_read(etcd: Any, serve: Any) -> None:
    value = base64.b64encode("grün".encode()).decode()
    node, server = serve(
        answering({"header": HEADER}),
        answering({"header": HEADER, "kvs": [{"key": "YQ==", "value": value}], "count": "1"}),
        answering({"header": HEADER}),
        answering({"header": HEADER, "kvs": [{"key": "YQ=="}], "count": "1"}),
        answering({"header": HEADER, "kvs": [{"key": "YQ==", "value": "//8="}]}),
    )
    etcd.write(node, "a", "grün")
    assert etcd.read(node, "a") == "grün"
    assert etcd.read(node, "b") is None
    assert not etcd.read(node, "a")
    assert etcd.read(node, "a") == "��"
    put, read, *_ = server.requests
    assert (put["path"], read["path"]) == ("/v3/kv/put", "/v3/kv/range")
    assert json.loads(put["body"]) == {"key": "YQ==", "value": value}
    # Nothing that makes it a weaker read than a linearizable one.
    assert json.loads(read["body"]) == {"key": "YQ=="}
    assert put["headers"]["grpc-metadata-hasleader"] == "true"


@pytest.mark.parametrize("pairs", [7, "x", [7], [{"value": 7}], [{"value": "?"}]], ids=str)
def test_a_value_that_cannot_be_read_is_no_value(etcd: Any, serve: Any, pairs: object) -> None:
    node, _ = serve(answering({"header": HEADER, "kvs": pairs}))
    with pytest.raises(OutcomeUnknownError, match="cannot be read"):
        etcd.read(node, "a")


# --- looks --------------------------------------------------------------------------------------------

MEMBERS = {
    "header": HEADER,
    "members": [
        {"ID": "10", "name": "node-2", "peerURLs": ["http://10.77.0.2:2380"]},
        {"ID": "11", "name": "node-1", "peerURLs": ["http://10.77.0.1:2380"], "isLearner": True},
    ],
}


def test_members_and_the_leader_by_name(etcd: Any, serve: Any) -> None:
    node, server = serve(
        answering(MEMBERS),
        answering({"header": HEADER, "leader": "10"}),
        answering(MEMBERS),
        answering({"header": HEADER, "leader": "99"}),
        answering(MEMBERS),
        answering({"header": HEADER, "errors": ["etcdserver: no leader"]}),
        answering(MEMBERS),
    )
    assert etcd.members(node) == [Member("node-1", voter=False), Member("node-2")]
    assert etcd.leader(node) == "node-2"
    assert etcd.leader(node) is None
    assert etcd.leader(node) is None
    # A member without a leader has a view, too.
    assert not any("grpc-metadata-hasleader" in request["headers"] for request in server.requests)


def test_a_member_that_has_not_started_is_named_by_its_address(
    etcd: Any, lan: Segment, serve: Any
) -> None:
    urls = [f"http://{lan.address('node-3').ip}:2380"], ["http://[fd77::1]:2380"], ["7"]
    members = [{"ID": str(number), "peerURLs": each} for number, each in enumerate(urls)]
    node, _ = serve(answering({"members": members}))
    assert [member.name for member in etcd.members(node)] == ["7", "fd77::1", "node-3"]


@pytest.mark.parametrize(
    "answer",
    [{}, {"members": 7}, {"members": [7]}, {"members": [{"ID": "1"}]}, {"members": [{"name": []}]}],
    ids=str,
)
def test_a_list_of_members_that_cannot_be_read(etcd: Any, serve: Any, answer: object) -> None:
    node, _ = serve(answering(answer))
    with pytest.raises(OutcomeUnknownError, match="cannot be read"):
        etcd.members(node)


@pytest.mark.parametrize(
    ("read", "status", "healthy"),
    [
        (answering({"header": HEADER}), answering({"leader": "10"}), True),
        (answering({"header": HEADER}), answering({"leader": "0"}), False),
        (answering({"header": HEADER}), answering({}), False),
        (
            answering({"header": HEADER}),
            answering({"leader": "10", "errors": ["memberID:1 alarm:NOSPACE "]}),
            False,
        ),
        (answering({"header": HEADER}), takes_and_says_nothing, False),
        (failing("etcdserver: rpc not supported for learner"), answering({"leader": "10"}), False),
        (closes_at_once, answering({"leader": "10"}), False),
        (says_nothing, answering({"leader": "10"}), False),
    ],
)
def test_a_healthy_member_reads_has_a_leader_and_takes_writes(
    etcd: Any, serve: Any, read: Script, status: Script, healthy: bool
) -> None:
    node, _ = serve(read, status)
    assert etcd.healthy(node) is healthy


# --- the command in the guest -------------------------------------------------------------------------


def a_result(stdout: str = "", stderr: str = "", status: int = 0) -> Result:
    return Result(stdout, stderr, status, 0.1, "skiff-cluster", "node-1")


def test_the_words_that_change_the_cluster_run_the_command_of_the_image(
    etcd: Any, lan: Segment
) -> None:
    one, two = Node(name="node-1"), Node(name="node-2")
    one.results = [
        a_result(),
        a_result(),
        a_result(),
        a_result("abc.def\n"),
        a_result("a-b\n"),
        a_result("t\n"),
        a_result(),
    ]
    two.results = [a_result(), a_result(), a_result()]
    etcd.prepare(one, [one, two])
    etcd.prepare(one, [one], name="another")
    etcd.first(one)
    assert etcd.token(one) == "abc.def"
    assert etcd.token(one, 2_592_000.5) == "a-b"
    etcd.join(two, via=one)
    etcd.join(two, token="it's")
    etcd.join(two, one, token="t2")
    etcd.leave("node-2", via=one)
    address = etcd.virtual_address
    assert address in lan.addresses.of("virtual").network  # type: ignore[union-attr]
    assert one.commands == [
        f"skiff-cluster prepare --name node-1 --virtual-address {address}",
        f"skiff-cluster prepare --name another --virtual-address {address}",
        "skiff-cluster init",
        "skiff-cluster token",
        "skiff-cluster token --lifetime 2592001",
        "skiff-cluster token",
        "skiff-cluster leave node-2",
    ]
    server = lan.address("node-1").ip
    assert two.commands == [
        f"skiff-cluster join --token t --server {server}",
        """skiff-cluster join --token 'it'"'"'s'""",
        f"skiff-cluster join --token t2 --server {server}",
    ]
    with pytest.raises(UsageError, match="a member or a token"):
        etcd.join(two)
    expected = f"name node-4\nvirtual-address {address}\njoin t3\n"
    assert etcd.configuration("node-4", one, token="t3") == expected
    one.results = [a_result("t4\n")]
    assert etcd.configuration("node-5", one).endswith("join t4\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_refused_join_has_its_reason(etcd: Any, stream: str) -> None:
    node: Any = Node()
    node.results = [
        a_result(status=3, **{stream: "asking 10.77.0.1\nrefused: clock: 3600 s apart\n"})
    ]
    with pytest.raises(JoinRefusedError, match="refused node-1: clock: 3600 s apart") as caught:
        etcd.join(node, token="t")
    assert caught.value.reason == "clock"
    assert "asking 10.77.0.1" in caught.value.evidence


@pytest.mark.parametrize(
    "result",
    [
        a_result(stderr="refused: clock: x", status=1),
        a_result(stderr="no such command", status=3),
        a_result(stderr="refused: clock: x\nand then it died", status=3),
        a_result(status=3),
        a_result(status=-1),
    ],
    ids=str,
)
def test_a_command_that_fails_is_no_refusal(etcd: Any, result: Result) -> None:
    node: Any = Node()
    node.results = [result]
    with pytest.raises(CommandError):
        etcd.join(node, token="t")


def test_a_member_without_a_station_or_with_the_virtual_address_is_refused(
    tmp_path: Path,
) -> None:
    with Segment("bare", folder=tmp_path) as bare:
        etcd: Any = Etcd(bare)
        assert etcd.virtual_address is None
        assert not etcd.holds(Node())
        with pytest.raises(UsageError, match="segment bare gives no addresses"):
            etcd.prepare(Node(), [])
        with pytest.raises(UsageError, match="segment bare gives no addresses"):
            etcd.configuration("node-1", Node(), token="t")
    with Segment("lan", folder=tmp_path, addresses=Addresses()) as lan:
        lan.add_port("virtual")
        etcd = Etcd(lan)
        with pytest.raises(UsageError, match="machine virtual has the virtual address"):
            etcd.prepare(Node(), [Node(name="virtual")])


def test_the_holder_of_the_virtual_address(etcd: Any) -> None:
    node: Any = Node()
    node.results = [
        a_result(f"2: eth1    inet {etcd.virtual_address.ip}/16 scope global secondary eth1\n"),
        a_result(""),
        WaitTimeoutError("an answer", 3),
        ConnectionLostError("the guest went away"),
        PanicError("the kernel panicked"),
    ]
    assert etcd.holds(node)
    assert [etcd.holds(node) for _ in range(3)] == [False] * 3
    with pytest.raises(PanicError):
        etcd.holds(node)
    assert node.commands[0] == f"ip -4 -o address show to {etcd.virtual_address.ip}/32"

    class Cut(Node):
        def execute(self, command: str, deadline: Limit = 60) -> Result:
            self.running = False
            raise PanicError("the machine was stopped")

    assert not etcd.holds(Cut())


def test_the_provider_is_found_by_its_name() -> None:
    kind: type[Provider] = providers.of("etcd")
    assert kind is Etcd
    assert providers.names() == ("etcd",)
    with pytest.raises(UnknownNameError, match="unknown provider 'etdc'") as caught:
        providers.of("etdc")
    assert "known: etcd" in str(caught.value)
