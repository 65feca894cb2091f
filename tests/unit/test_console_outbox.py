"""The writing side of a console: a send and the terminal's replies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.console.outbox import Outbox, Signal
from harness.console.wire import Wire, pair
from harness.deadline import Deadline

PATIENCE = 60.0


@pytest.fixture
def signals() -> Iterator[tuple[Signal, Signal]]:
    with contextlib.closing(Signal()) as aborted, contextlib.closing(Signal()) as poke:
        yield aborted, poke


class Lock:
    """A lock that records each wait for it, in seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waits: list[float] = []
        self.tried = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking:
            return self._lock.acquire(blocking=False)
        self.waits.append(timeout)
        if timeout:
            # This thread waits now, so the one that holds the lock may go on.
            self.tried.set()
        acquired = self._lock.acquire(timeout=timeout)
        self.tried.set()
        return acquired

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


class Slow:
    """A wire whose first write lasts until another thread has tried to write."""

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


class Full(Wire):
    """A wire without a reader, which is full after a while."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire.incoming, wire.outgoing)
        self.setblocking(False)
        self.full = threading.Event()

    def send(self, data: Any) -> int:
        try:
            return super().send(data)
        except BlockingIOError:
            self.full.set()
            raise


def test_what_is_typed_while_a_reply_is_written_is_not_lost(
    signals: tuple[Signal, Signal],
) -> None:
    """A login types its probe at a prompt, and a query of the cursor follows that."""
    lock = Lock()
    wire: Any = Slow(lock)
    outbox = Outbox(wire, *signals)
    outbox._writing = lock  # type: ignore[assignment]
    replying = threading.Thread(target=outbox.reply, args=(b"\x1b[24;10R",))
    replying.start()
    assert wire.begun.wait(PATIENCE)
    assert outbox.send(b" echo probe\r", Deadline(0.0, time.monotonic())) == 0
    replying.join(PATIENCE)
    assert wire.written == b"\x1b[24;10R echo probe\r"


def test_a_reply_that_nobody_will_read_does_not_stay(signals: tuple[Signal, Signal]) -> None:
    guest, host = pair()
    with host:
        guest.close()
        outbox = Outbox(host, *signals)
        outbox.reply(b"\x1b[0n")
        # The drain thread would be woken by it again and again.
        assert not outbox.waiting


def test_what_is_typed_beside_a_send_that_nobody_reads_does_not_wait(
    signals: tuple[Signal, Signal],
) -> None:
    guest, host = pair()
    with guest, host:
        lock, wire = Lock(), Full(host)
        outbox = Outbox(wire, *signals)
        outbox._writing = lock  # type: ignore[assignment]
        limit = Deadline(PATIENCE, time.monotonic() + PATIENCE)
        long = threading.Thread(target=outbox.send, args=(bytes(1 << 24), limit))
        long.start()
        assert wire.full.wait(PATIENCE)
        assert outbox.send(b"probe", Deadline(0.0, time.monotonic())) == len(b"probe")
        assert lock.waits[-1] == 0
        signals[0].set()
        long.join(PATIENCE)
        assert not long.is_alive()
