"""What goes to the guest: whole, in order, and never in the way of the drain.

A *send* is a person's or a test's: it is delivered whole or fails at its deadline. A *reply* is a
terminal's answer to a query: it never waits, never lands inside a send, and is dropped when the
guest does not read.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import Final

from harness.deadline import Deadline

_REPLIES: Final = 4096
"""Bytes of replies that may wait for a guest that does not read."""


class Signal:
    """A flag that ``poll`` can wait for."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that is readable while the flag is up."""
        return self._out.fileno()

    def set(self) -> None:
        """Raise the flag. After :meth:`close` nothing happens."""
        try:
            self._in.send(b"\0")
        except OSError:
            # Full: the flag is up already. Closed: nobody looks.
            return

    def clear(self) -> None:
        """Take the flag down."""
        try:
            while self._out.recv(4096):
                pass
        except OSError:
            return

    def close(self) -> None:
        """Free the descriptors."""
        self._out.close()
        self._in.close()


class Outbox:
    """The writing side of a console's socket.

    Args:
        sock: The socket, non-blocking.
        aborted: Raised when a wait must end: the guest failed or the console is closed.
        poke: Raised by the outbox when replies are left for the drain thread to write.
    """

    def __init__(self, sock: socket.socket, aborted: Signal, poke: Signal) -> None:
        self._sock = sock
        self._aborted = aborted
        self._poke = poke
        self._writing = threading.Lock()
        self._guard = threading.Lock()
        self._replies = bytearray()
        self._replied = False
        self.dropped = 0
        self.sent = 0
        """How many times something was sent; replies do not count."""

    def send(self, data: bytes, deadline: Deadline, *, after_replies: bytes = b"") -> int:
        """Write all of ``data``; return how many bytes were not written.

        Anything but zero means that the deadline passed or that a wait must end. The guest then
        has the beginning only.

        Args:
            data: What to write.
            deadline: When to give up.
            after_replies: Goes first if replies were written since the last such send.
        """
        timeout = deadline.timeout()
        if not self._writing.acquire(timeout=-1 if timeout is None else timeout):
            return len(data)
        try:
            with self._guard:
                self.sent += 1
                # What the socket has not taken of a reply goes first, or it would be cut in two.
                first = bytes(self._replies)
                self._replies.clear()
            if after_replies and (self._replied or first):
                first += after_replies
                self._replied = False
            data = first + data
            left = min(self._write(memoryview(data), deadline), len(data) - len(first))
        finally:
            self._writing.release()
        if self._replies:
            self._poke.set()
        return left

    def _write(self, view: memoryview, deadline: Deadline) -> int:
        poller: select.poll | None = None
        while view:
            try:
                view = view[self._sock.send(view) :]
                continue
            except BlockingIOError:
                pass
            except OSError:
                # The other end is gone; the drain thread finds out and says why.
                return len(view)
            if poller is None:
                poller = select.poll()
                poller.register(self._sock, select.POLLOUT)
                poller.register(self._aborted, select.POLLIN)
            ready = poller.poll(deadline.poll_timeout())
            if not ready or any(fd == self._aborted.fileno() for fd, _ in ready):
                return len(view)
        return 0

    def reply(self, data: bytes, sent: int | None = None) -> None:
        """Queue a reply and write what the socket takes now.

        It is dropped if too much waits.

        Args:
            data: The reply.
            sent: What :attr:`sent` was before the query came; the reply is dropped if it has grown.
        """
        with self._guard:
            if sent not in (None, self.sent) or len(self._replies) + len(data) > _REPLIES:
                self.dropped += 1
                return
            self._replies += data
        self.write_replies()

    @property
    def room(self) -> bool:
        """Whether a reply would be taken."""
        return len(self._replies) < _REPLIES // 2

    @property
    def waiting(self) -> bool:
        """Whether replies wait for the socket, and nobody who is sending will see to them."""
        return bool(self._replies) and not self._writing.locked()

    def write_replies(self) -> None:
        """Write what the socket takes of the replies, unless a send is under way."""
        if not self._writing.acquire(blocking=False):
            return  # the sender pokes the drain thread when it is done
        try:
            with self._guard:
                while self._replies:
                    sent = self._sock.send(self._replies)
                    del self._replies[:sent]
                    self._replied = True
        except OSError:
            return
        finally:
            self._writing.release()
