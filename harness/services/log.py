"""What a server was asked for: in memory for tests, in a file as evidence."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Request:
    """What a client asked for, and what it got.

    Attributes:
        method: ``GET``, ``HEAD`` ...; empty if TLS failed before a request.
        path: The path with its query.
        status: The answer's; 0 if there was none.
        bytes: Bytes of the body handed to the connection.
        fault: The faults that spoilt it, in words; or why TLS failed.
        when: Seconds of the epoch.
        seconds: How long the answer took; ``None`` while it goes on.
    """

    method: str
    path: str
    status: int = 0
    bytes: int = 0
    fault: str = ""
    when: float = field(default_factory=time.time)
    seconds: float | None = None


class Log:
    """The requests of a server, in memory and in a file of one JSON object a line.

    A request is in :attr:`requests` before the first byte of its answer is sent: who has an answer
    finds it there. The file has it when it has ended.

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
        """The requests since the last :meth:`forget`, in the order of their beginning."""
        with self._lock:
            return list(self._requests)

    def begin(self, request: Request) -> None:
        """Record a request that is about to be answered.

        One that a client made before :meth:`forget` is not remembered: TLS that a client broke off
        is told of when the client has long gone on.
        """
        with self._lock:
            if request.when >= self._since:
                self._requests.append(request)

    def end(self, request: Request) -> None:
        """Record that it has been."""
        request.seconds = round(time.time() - request.when, 4)
        line = json.dumps({name: getattr(request, name) for name in Request.__slots__})
        # A full disk must not break the connection of a guest.
        with self._lock, contextlib.suppress(OSError), self.path.open("a") as file:
            file.write(line + "\n")

    def forget(self) -> None:
        """Begin anew in memory; the file keeps all."""
        with self._lock:
            self._requests.clear()
            self._since = time.time()
