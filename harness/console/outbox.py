"""The writing side of a console: sends and replies, which never block the drain thread.

A *send* is input from a test or a person; it is written completely or fails at its deadline. A
*reply* is the terminal's answer to a query of the guest; it never waits, never lands inside a send,
and is dropped if the guest does not read.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import Final

from harness.console.wire import Wire
from harness.deadline import Deadline

_INSTANT: Final = 1.0
"""Seconds that a send waits at least for the end of a reply. A reply never blocks, but the host may have
taken the CPU from the thread that writes it."""

_REPLIES: Final = 4096
"""Bytes of replies that are queued at most, for a guest that does not read."""


class Signal:
    """A flag that ``poll(2)`` can wait for."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor, which is readable while the flag is set."""
        return self._out.fileno()

    def set(self) -> None:
        """Set the flag; after :meth:`close` it does nothing."""
        try:
            self._in.send(b"\0")
        except OSError:
            # A full socket means that the flag is set already; a closed one has no reader.
            return

    def clear(self) -> None:
        """Clear the flag."""
        try:
            while self._out.recv(4096):
                pass
        except OSError:
            return

    def close(self) -> None:
        """Close the descriptors."""
        self._out.close()
        self._in.close()


class Outbox:
    """The writing side of a console's wire.

    Args:
        wire: The console's end, in non-blocking mode.
        aborted: Set by the owner to end sends: the guest failed or the console is closed.
        poke: Set by the outbox when the drain thread must write replies.

    Attributes:
        sent: The number of sends so far; replies do not count.
    """

    def __init__(self, wire: Wire, aborted: Signal, poke: Signal) -> None:
        self._wire = wire
        self._aborted = aborted
        self._poke = poke
        self._writing = threading.Lock()
        self._guard = threading.Lock()
        self._replies = bytearray()
        self._replied = False
        self._sending = False

        self.sent = 0

    def send(self, data: bytes, deadline: Deadline, *, after_replies: bytes = b"") -> int:
        """Write all of ``data``; return the number of bytes that were not written.

        A result other than 0 means that the deadline passed, that ``aborted`` is set, or that the
        connection ended. The guest then has only the first bytes.

        Args:
            data: The bytes to write.
            deadline: When to give up. The end of a reply is awaited even after that.
            after_replies: Bytes to write before ``data`` if replies were written since the last
                send that had this argument.
        """
        if not deadline.wait(self._begin_to_send):
            return len(data)
        try:
            self._sending = True
            with self._guard:
                self.sent += 1
                # The rest of a reply goes first, or this send would split it.
                first = bytes(self._replies)
                self._replies.clear()
            if after_replies and (self._replied or first):
                first += after_replies
                self._replied = False
            data = first + data
            left = min(self._write(memoryview(data), deadline), len(data) - len(first))
        finally:
            self._sending = False
            self._writing.release()
        if self._replies:
            self._poke.set()
        return left

    def _begin_to_send(self, left: float | None) -> bool:
        """Wait for the end of another send, which a guest may hold up, or of a reply."""
        if left is None:
            return self._writing.acquire()
        return self._writing.acquire(timeout=left if self._sending else max(left, _INSTANT))

    def _write(self, view: memoryview, deadline: Deadline) -> int:
        poller: select.poll | None = None
        while view:
            try:
                view = view[self._wire.send(view) :]
                continue
            except BlockingIOError:
                pass
            except OSError:
                # The connection ended; the drain thread sees it too, and reports the reason.
                return len(view)
            if poller is None:
                poller = select.poll()
                poller.register(self._wire.outgoing, select.POLLOUT)
                poller.register(self._aborted, select.POLLIN)
            ready = poller.poll(deadline.poll_timeout())
            if any(fd == self._aborted.fileno() for fd, _ in ready):
                return len(view)
            if not ready and deadline.expired:
                return len(view)
        return 0

    def reply(self, data: bytes, sent: int | None = None) -> None:
        """Queue a reply and write as much as the guest's side accepts now.

        The reply is dropped if too many bytes are queued.

        Args:
            data: The reply.
            sent: The value of :attr:`sent` before the query arrived; the reply is dropped if there
                was a send since. ``None`` does not check.
        """
        with self._guard:
            if sent not in (None, self.sent) or len(self._replies) + len(data) > _REPLIES:
                return
            self._replies += data
        self.write_replies()

    @property
    def room(self) -> bool:
        """Whether the queue has room for a reply."""
        return len(self._replies) < _REPLIES // 2

    @property
    def waiting(self) -> bool:
        """Whether replies are queued and no send is in progress that would write them."""
        return bool(self._replies) and not self._writing.locked()

    def write_replies(self) -> None:
        """Write as many queued replies as the guest's side accepts, unless a send is in progress."""
        if not self._writing.acquire(blocking=False):
            return  # the send pokes the drain thread at its end
        try:
            with self._guard:
                while self._replies:
                    sent = self._wire.send(self._replies)
                    del self._replies[:sent]
                    self._replied = True
        except BlockingIOError:
            return
        except OSError:
            # Nobody reads them any more; the drain thread sees the end as well.
            self._replies.clear()
        finally:
            self._writing.release()
