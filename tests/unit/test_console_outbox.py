"""The writing side of a console: a send and the terminal's replies."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.console.outbox import Outbox, Signal
from harness.deadline import Deadline

PATIENCE = 60.0


@pytest.fixture
def signals() -> Iterator[tuple[Signal, Signal]]:
    with contextlib.closing(Signal()) as aborted, contextlib.closing(Signal()) as poke:
        yield aborted, poke


class Lock:
    """A lock that tells when somebody has tried to take it and either waits or has not got it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tried = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking:
            return self._lock.acquire(blocking=False)
        if timeout == 0:
            taken = self._lock.acquire(timeout=0)
            self.tried.set()
            return taken
        self.tried.set()
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


class Wire:
    """A socket whose first write takes until somebody else has tried to write."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self.begun = threading.Event()
        self.written = b""

    def send(self, data: Any) -> int:
        if not self.begun.is_set():
            self.begun.set()
            assert self._lock.tried.wait(PATIENCE)
        self.written += bytes(data)
        return len(data)


def test_what_is_typed_while_a_reply_is_written_is_not_lost(
    signals: tuple[Signal, Signal],
) -> None:
    """A login types its probe at a prompt that a query of the cursor follows: at once, or never."""
    lock = Lock()
    wire: Any = Wire(lock)
    outbox = Outbox(wire, *signals)
    outbox._writing = lock  # type: ignore[assignment]
    replying = threading.Thread(target=outbox.reply, args=(b"\x1b[24;10R",))
    replying.start()
    assert wire.begun.wait(PATIENCE)
    assert outbox.send(b" echo probe\r", Deadline(0.0, time.monotonic())) == 0
    replying.join(PATIENCE)
    assert wire.written == b"\x1b[24;10R echo probe\r"


def test_what_is_typed_beside_a_send_that_nobody_reads_does_not_wait(
    signals: tuple[Signal, Signal],
) -> None:
    guest, host = socket.socketpair()
    host.setblocking(False)
    outbox = Outbox(host, *signals)
    long = threading.Thread(
        target=outbox.send, args=(bytes(1 << 24), Deadline(PATIENCE, time.monotonic() + PATIENCE))
    )
    long.start()
    while not outbox._sending:
        long.join(0.01)
    assert outbox.send(b"probe", Deadline(0.0, time.monotonic())) == len(b"probe")
    signals[0].set()
    long.join(PATIENCE)
    assert not long.is_alive()
    guest.close()
    host.close()
