"""Addresses that must not answer, over real sockets of this host's loopback."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from harness.errors import UsageError
from harness.host import reach


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def silent() -> Iterator[int]:
    """Return a port whose queue is full: the kernel drops what else arrives, as a policy does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield port


def answer(host: str, port: int, seconds: float = 60.0) -> reach.Answer:
    with reach.Attempts([reach.Endpoint("it", host, port, "do this")], seconds) as attempts:
        [only] = attempts.answers()
    return only


def test_a_neighbour_that_listens_answers(listener: socket.socket) -> None:
    reply = answer("127.0.0.1", listener.getsockname()[1])
    assert reply.connected
    assert reply.how == "it accepts connections"


def test_a_port_that_refuses_does_not_answer() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        reply = answer("127.0.0.1", bound.getsockname()[1])
    assert (reply.connected, reply.how) == (False, "connection refused")


def test_silence_ends_at_the_deadline(silent: int) -> None:
    reply = answer("127.0.0.1", silent, 0.05)
    assert (reply.connected, reply.how) == (False, "no answer within 0.05 s")


def test_what_answered_is_noticed_however_late_one_looks(
    listener: socket.socket, silent: int
) -> None:
    port = listener.getsockname()[1]
    endpoints = [reach.Endpoint("it", "127.0.0.1", each, "") for each in (silent, port)]
    with reach.Attempts(endpoints, 0.0) as attempts:
        select.select([listener], [], [])  # The connection is made.
        assert [each.connected for each in attempts.answers()] == [False, True]


def test_the_answers_come_in_the_order_of_the_endpoints(
    listener: socket.socket, silent: int
) -> None:
    ports = [silent, listener.getsockname()[1], silent]
    endpoints = [reach.Endpoint(str(n), "127.0.0.1", port, "") for n, port in enumerate(ports)]
    with reach.Attempts(endpoints, 0.2) as attempts:
        answers = attempts.answers()
    assert [(each.endpoint.name, each.connected) for each in answers] == [
        ("0", False),
        ("1", True),
        ("2", False),
    ]


def test_no_connection_stays_open(listener: socket.socket, silent: int) -> None:
    port = listener.getsockname()[1]
    # An open socket that nobody closes is a ResourceWarning, which is an error here.
    with reach.Attempts([reach.Endpoint("it", "127.0.0.1", each, "") for each in (port, silent)]):
        connection, _ = listener.accept()
    with connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("10.0.0.7:8080", "10.0.0.7", 8080), ("[fd00::7]:80", "fd00::7", 80)],
)
def test_an_address_has_an_ip_and_a_port(address: str, host: str, port: int) -> None:
    endpoint = reach.endpoint("neighbour", address, "")
    assert (endpoint.host, endpoint.port, str(endpoint)) == (host, port, address)


@pytest.mark.parametrize(
    "address", ["web:80", "10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:65536", "", ":80", "1:x"]
)
def test_an_address_without_ip_or_port_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is no IP address with a port"):
        reach.endpoint("neighbour", address, "")
