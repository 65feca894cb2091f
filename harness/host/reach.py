"""Whether addresses answer that a runner must not reach.

A pod that runs the code of a change is cut off from the metadata service of its cloud, from the API
server and from its neighbours. A network policy is a wish until somebody has tried: an exception for the
metadata address had no effect on GKE (kubernetes/kubernetes#68078), and some networks enforce no policy.
A refused connection counts as no answer: some networks reject what a policy denies, and others drop it.

All connections are begun at once and are given up together, so that the check takes as long as one of
them.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import socket
from dataclasses import dataclass
from typing import Final, Self

from harness.deadline import UNSCALED, Deadline
from harness.errors import UsageError

SECONDS: Final = 1.5
"""How long an address may take to answer. One in the same cluster takes milliseconds; a first packet
that is lost is sent again after a second (RFC 6298, section 2)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that must not answer.

    Attributes:
        name: What is there: ``metadata``.
        host: Its IP address, of version 4 or 6.
        port: Its TCP port.
        hint: What to do if it answers.
    """

    name: str
    host: str
    port: int
    hint: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a connection.

    Attributes:
        endpoint: The address.
        connected: Whether it answered.
        how: The result for a person: ``no answer within 1.5 s``, ``Connection refused``.
    """

    endpoint: Endpoint
    connected: bool
    how: str


def endpoint(name: str, address: str, hint: str) -> Endpoint:
    """Return the endpoint of ``10.0.0.7:8080`` or ``[fd00::7]:8080``.

    Names are refused: looking one up asks the network that is under test, and has no time limit.

    Raises:
        UsageError: It is no IP address with a port.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
        if not 0 < number < 65536:
            raise ValueError(port)
    except ValueError as error:
        raise UsageError(
            f"{name}: {address!r} is no IP address with a port",
            hint="10.0.0.7:8080 or [fd00::7]:8080; for a name: getent ahosts NAME",
        ) from error
    return Endpoint(name, host, number, hint)


class Attempts:
    """Connections to endpoints, begun when it is made; a context manager that closes them.

    Args:
        endpoints: The addresses.
        seconds: How long they may take together.
    """

    def __init__(self, endpoints: list[Endpoint], seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._deadline: Deadline = UNSCALED.after(seconds)
        self._endpoints = endpoints
        self._answers: dict[Endpoint, Answer] = {}
        self._selector = selectors.DefaultSelector()
        for each in endpoints:
            self._begin(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def answers(self) -> list[Answer]:
        """Wait for the connections and return what came of each, in the order of the endpoints."""
        # On a busy host, other checks may have taken all the time. An address has answered all the same.
        while self._selector.get_map() and (
            ready := self._selector.select(self._deadline.timeout())
        ):
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                self._selector.unregister(key.fileobj)
                with key.fileobj as connection:
                    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._end(key.data, code)
        silent = f"no answer within {self._seconds:g} s"
        return [self._answers.get(each, Answer(each, False, silent)) for each in self._endpoints]

    def _begin(self, each: Endpoint) -> None:
        family = socket.AF_INET6 if ":" in each.host else socket.AF_INET
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            except OSError as error:  # a kernel without IPv6
                self._end(each, error.errno or errno.EAFNOSUPPORT)
                return
            connection.setblocking(False)
            code = connection.connect_ex((each.host, each.port))
            if code in (errno.EINPROGRESS, errno.EAGAIN):
                stack.pop_all()
                self._selector.register(connection, selectors.EVENT_WRITE, each)
                return
            self._end(each, code)

    def _end(self, each: Endpoint, code: int) -> None:
        how = os.strerror(code).lower() if code else "it accepts connections"
        self._answers[each] = Answer(each, code == 0, how)
