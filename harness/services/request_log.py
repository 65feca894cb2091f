"""The log of a server's requests: in memory for tests, in a file as evidence."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Request:
    """A request of a client, and its answer.

    Attributes:
        method: ``GET``, ``HEAD`` ...; empty if TLS failed before a request.
        path: The path with its query.
        status: The status of the answer; 0 if there was no answer.
        bytes: Bytes of the body that were handed to the connection.
        fault: The faults that altered the answer, or why TLS failed; after ``TLS:``, the latter.
        when: The beginning, in seconds of the epoch.
        seconds: The duration of the answer; ``None`` until it ends.
    """

    method: str
    path: str
    status: int = 0
    bytes: int = 0
    fault: str = ""
    when: float = field(default_factory=time.time)
    seconds: float | None = None
    _began: float = field(default_factory=time.monotonic, repr=False, compare=False)


class RequestLog:
    """The requests of a server, in memory and in a file with one JSON object a line.

    A request is in :attr:`requests` before the first byte of its answer is sent: a client that has
    received a byte finds its request there. A TLS handshake is there until it succeeds: a client that
    refused the certificate finds it, however late the server reads the refusal. The file receives a
    request when its answer has ended.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._since = 0.0

    @property
    def requests(self) -> list[Request]:
        """The requests since the last :meth:`clear`, in the order of their beginning."""
        with self._lock:
            return sorted(self._requests, key=lambda request: request._began)

    def begin(self, request: Request) -> None:
        """Record a request that is about to be answered, or a TLS handshake that begins.

        A request that began before the last :meth:`clear` is not recorded.
        """
        with self._lock:
            if request._began >= self._since:
                self._requests.append(request)

    def withdraw(self, handshake: Request) -> None:
        """Remove a TLS handshake that has succeeded: its requests follow."""
        with self._lock:
            self._requests = [other for other in self._requests if other is not handshake]

    def end(self, request: Request) -> None:
        """Record that the answer to a request has ended."""
        request.seconds = round(time.monotonic() - request._began, 4)
        names = [name for name in Request.__slots__ if not name.startswith("_")]
        line = json.dumps({name: getattr(request, name) for name in names})
        # A full disk must not break the connection of a guest.
        with self._lock, contextlib.suppress(OSError), self.path.open("a") as file:
            file.write(line + "\n")

    def clear(self) -> None:
        """Clear the requests in memory; the file keeps them all."""
        with self._lock:
            self._requests.clear()
            self._since = time.monotonic()
