"""One HTTP request to a server in a guest, and what is known of its effect afterwards.

The server is behind a forwarded port of QEMU's user-mode network. QEMU accepts a connection before it
knows whether the port of the guest is open, and the guest may be paused, so that a connection says
nothing. Therefore a request asks for permission before it sends its body (``Expect: 100-continue``,
RFC 9110, section 10.1.1): the server reads the body, or it does not. A request whose body was not sent
has done nothing and never will. Once a byte of the body has been sent, only an answer is proof.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from harness.deadline import Deadline
from harness.errors import OperationRefusedError, OutcomeUnknownError

MOST_BYTES: Final = 4 * 1024 * 1024
"""The longest answer that is read."""

_LONGEST_LINE: Final = 65536
_MOST_LINES: Final = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server.

    Attributes:
        status: The status of HTTP.
        body: The body.
    """

    status: int
    body: bytes


def post(
    server: tuple[str, int],
    path: str,
    body: bytes,
    limit: Deadline,
    *,
    headers: Mapping[str, str],
    running: Callable[[], bool],
) -> Answer:
    """Send a POST request on a connection of its own and return the answer.

    Args:
        server: Its host and port.
        path: The path.
        body: The body; not empty.
        limit: The deadline for all of it.
        headers: Further headers.
        running: Returns whether the machine behind the port still runs. Another process may have taken
            the port of one that has ended.

    Raises:
        OperationRefusedError: The body was not sent.
        OutcomeUnknownError: There is no answer, or none that can be read.
    """
    where = f"{server[0]}:{server[1]}{path}"
    try:
        connection = socket.create_connection(server, timeout=limit.timeout())
    except OSError as error:
        raise OperationRefusedError(f"{where}: no connection: {error}") from error
    with connection:
        # The machine held the port when it accepted the connection, if it runs now.
        if not running():
            raise OperationRefusedError(f"{where}: the machine has ended")
        connection.setblocking(False)
        stream = _Stream(connection, limit)
        reader = io.BufferedReader(stream)
        try:
            stream.send(_head(server, path, len(body), headers))
            line = _permission(reader)
        except OSError as error:
            raise OperationRefusedError(f"{where}: did not take the request: {error}") from error
        if line != _CONTINUE:
            what = "closed the connection" if not line else f"answered {line[:80]!r}"
            raise OperationRefusedError(f"{where}: {what} before it took the request")
        try:
            stream.send(body)
            # It takes nothing but the reader from what it calls a socket.
            response = http.client.HTTPResponse(cast(Any, _Reads(reader)), method="POST")
            response.begin()
            content = response.read(MOST_BYTES + 1)
            # A read of a limited length does not notice that the connection ended early.
            if response.length:
                raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise OutcomeUnknownError(f"{where}: no answer: {error!r}") from error
    if len(content) > MOST_BYTES:  # one without a length
        raise OutcomeUnknownError(f"{where}: an answer of more than {MOST_BYTES} bytes")
    return Answer(response.status, content)


def _head(server: tuple[str, int], path: str, length: int, headers: Mapping[str, str]) -> bytes:
    fields = {
        "Host": f"{server[0]}:{server[1]}",
        "Content-Length": str(length),
        "Expect": "100-continue",
        "Connection": "close",
        **headers,
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


_CONTINUE: Final = b"HTTP/1.1 100"


def _permission(reader: io.BufferedReader[_Stream]) -> bytes:
    """Return the server's permission to send the body, or the line that it sent instead."""
    line = reader.readline(_LONGEST_LINE)
    if not line.startswith(_CONTINUE):
        return line
    for _ in range(_MOST_LINES):
        field = reader.readline(_LONGEST_LINE)
        if field in (b"\r\n", b"\n"):
            return _CONTINUE
        if not field:
            return field
    return line


class _Stream(io.RawIOBase):
    """A connection whose reads and writes share one deadline, however slowly bytes arrive."""

    def __init__(self, connection: socket.socket, limit: Deadline) -> None:
        super().__init__()
        self._connection = connection
        self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wait(select.POLLIN)
        return self._connection.recv_into(buffer)

    def send(self, data: bytes) -> None:
        """Send all data."""
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT)
            view = view[self._connection.send(view) :]

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._connection, event)
        ready = self._limit.wait(
            lambda seconds: poll.poll(None if seconds is None else seconds * 1000)
        )
        if not ready:
            raise TimeoutError(f"no answer within {self._limit.elapsed:.1f} s")


@dataclass(frozen=True, slots=True)
class _Reads:
    """What ``http.client`` needs of a socket: a file to read from."""

    reader: io.BufferedReader[_Stream]

    def makefile(self, mode: str) -> io.BufferedReader[_Stream]:
        """Return the reader."""
        return self.reader
