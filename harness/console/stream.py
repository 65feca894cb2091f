"""The reading side of a console: always drained, every byte in the log.

One thread reads the socket, whatever else goes on: a guest whose console nobody reads stands still.
Each chunk goes to the raw log, the recording, the watchers and the terminal's answers, then the
waits are woken. The log is also the buffer: waits read from it, at any distance behind, so that
memory stays bounded and nothing is lost. An offset is a byte's place in the output of this console.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from harness.console.cast import COALESCE, CastWriter
from harness.console.failures import Failure, Failures
from harness.console.outbox import Outbox, Signal
from harness.console.query import QueryResponder
from harness.console.text import last_lines
from harness.console.watch import Scanner, Sighting, Watcher
from harness.errors import DiskFullError, HarnessError, QemuExitedError, StoreError

_CHUNK: Final = 1024 * 1024
_TAIL: Final = 64 * 1024
_LINES: Final = 25


class Stream:
    """Drains a socket; owns it, the thread, the log and the recording.

    Args:
        sock: A connected stream socket; the stream closes it.
        log: The raw log; it is appended to, so that the consoles of one machine's boots share one.
        cast: The recording, or ``None``.
        name: The machine's name, for messages.
        watchers: What ends the waits.
        size: Columns and rows of the terminal.
        on_eof: Makes the error for a connection that the guest's side closed; runs in the drain
            thread.
        on_failure: Told of a failure that a watcher saw; runs in the drain thread.

    Raises:
        OSError: if the log or the recording cannot be made.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        log: Path,
        cast: Path | None,
        name: str,
        watchers: Iterable[Watcher],
        size: tuple[int, int],
        on_eof: Callable[[], BaseException] | None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._sock = sock
        self._on_eof = on_eof
        self._on_failure = on_failure
        self._closing = False
        self._untold = False
        self._sent_before = 0
        self._listeners: list[Signal] = []
        sock.setblocking(False)
        self._log_fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._base = os.fstat(self._log_fd).st_size
        self._log_error: OSError | None = None
        columns, rows = size
        try:
            self._cast = CastWriter(cast, title=name, columns=columns, rows=rows) if cast else None
        except OSError:
            os.close(self._log_fd)
            raise
        self._head = Scanner.HEADROOM
        self._buffer = bytearray(self._head + _CHUNK)
        self._tail = bytearray()
        self.total = 0
        self.last_at = time.monotonic()
        self.condition = threading.Condition()
        self.failures = Failures(self.condition, self._explain)
        self._aborted = Signal()
        self._poke = Signal()
        self.outbox = Outbox(sock, self._aborted, self._poke)
        self.queries = QueryResponder(self._reply, columns=columns, rows=rows)
        self._scanner = Scanner(watchers)
        self._thread = threading.Thread(target=self._run, name=f"console-{name}", daemon=True)
        self._thread.start()

    # Waiting and reading: any thread.

    @property
    def readable(self) -> int:
        """The offset up to which waits look: the end of output, or the place of the failure."""
        failure = self.failures.current
        return self.total if failure is None else min(self.total, failure.offset)

    def wait_past(self, offset: int, timeout: float | None, *, check: bool = True) -> int:
        """Wait until there is output past an offset; return :attr:`readable`.

        At the timeout, in seconds, it returns ``offset`` or less; also, without ``check``, after a
        failure.

        Raises:
            HarnessError: the failure, if no output before it is left.
        """
        with self.condition:
            end = self.readable
            if end <= offset and self.failures.current is None and timeout != 0:
                limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
                self.condition.wait_for(
                    lambda: self.total > offset or self.failures.current is not None, limit
                )
                end = self.readable
        if check and end <= offset:
            self.check()
        return end

    def check(self) -> None:
        """Raise the failure, if there is one."""
        failure = self.failures.current
        if failure is not None:
            error = failure.make()
            raise error.with_traceback(None)

    def read(self, start: int, end: int) -> bytes:
        """Return output between two offsets, from the log.

        Raises:
            DiskFullError: if the log could not be written that far.
            StoreError: if the log cannot be read.
        """
        parts = []
        while start < end:
            try:
                part = os.pread(self._log_fd, end - start, self._base + start)
            except OSError as error:
                raise StoreError(f"cannot read {self.log}: {error.strerror}") from error
            if not part:
                raise self._log_lost()
            parts.append(part)
            start += len(part)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def tail(self, count: int = _LINES) -> str:
        """Return the last lines of output as plain text."""
        with self.condition:
            data = bytes(self._tail[-_TAIL:])
        return last_lines(data, count)

    def silent_for(self) -> float:
        """Return for how many seconds there has been no output."""
        return max(0.0, time.monotonic() - self.last_at)

    def evidence(self) -> str:
        """Return where the log is and how it ends, for an error."""
        tail = self.tail()
        return f"{self.log}\n{tail}" if tail else str(self.log)

    def fail(self, error: BaseException) -> None:
        """End every wait with this error, now and until it is cleared."""
        self._set_failure(Failure(lambda: error, self.total, type(error)))

    def clear_failure(self) -> list[Sighting]:
        """Forget the failure; return what the watchers have seen."""
        seen = self.failures.clear()
        if self.failures.current is None:
            self._aborted.clear()
        return seen

    def listen(self, signal: Signal) -> None:
        """Raise a signal at each output and each failure, until :meth:`unlisten`."""
        with self.condition:
            self._listeners.append(signal)

    def unlisten(self, signal: Signal) -> None:
        """Stop raising a signal."""
        with self.condition:
            self._listeners.remove(signal)

    def close(self) -> None:
        """Stop draining and close everything. Waits in other threads end."""
        if self._closing:
            return
        self._closing = True
        self._poke.set()
        self._thread.join()
        closed = HarnessError(f"the console of {self.name} is closed", evidence=str(self.log))
        self._set_failure(Failure(lambda: closed, self.total, HarnessError, final=True))
        self._sock.close()
        if self._cast is not None:
            self._cast.close()
        os.close(self._log_fd)
        self._aborted.close()
        self._poke.close()

    # The drain thread.

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(self._poke, select.POLLIN)
        sock_fd = self._sock.fileno()
        view = memoryview(self._buffer)
        space = view[self._head :]
        writing = False
        while not self._closing:
            due = self._due()
            events = poller.poll(None if due is None else due * 1000 + 1)
            now = time.monotonic()
            if not events:
                self._settle(now)
                self._tell()
            for fd, event in events:
                if fd != sock_fd:
                    self._poke.clear()
                elif event & ~select.POLLOUT:
                    try:
                        count = self._sock.recv_into(space)
                    except (BlockingIOError, InterruptedError):
                        continue
                    except OSError:
                        count = 0
                    if not count:
                        self._ended()
                        return
                    self._take(view, count, now)
                    self._tell()
            if self.outbox.waiting:
                self.outbox.write_replies()
            if writing != self.outbox.waiting:
                writing = not writing
                poller.modify(self._sock, select.POLLIN | (select.POLLOUT if writing else 0))

    def _due(self) -> float | None:
        """Return in how many seconds :meth:`_settle` has something to do."""
        due = self._cast.due(time.monotonic()) if self._cast is not None else None
        if self._scanner.late:
            due = COALESCE if due is None else min(due, COALESCE)
        return due

    def _settle(self, now: float) -> None:
        """Do what was put off while output came in small pieces."""
        if self._cast is not None:
            self._cast.flush(now)
        self._report(self._scanner.flush())

    def _report(self, sightings: list[Sighting]) -> None:
        failed = False
        for sighting in sightings:
            failed |= self.failures.saw(sighting)
        if failed:
            self._aborted.set()
            self._untold = True

    def _tell(self) -> None:
        """Tell whoever has other waits on the guest what a watcher saw; holds no lock."""
        failure = self.failures.current
        if self._untold and failure is not None and self._on_failure is not None:
            self._on_failure(failure.make())
        self._untold = False

    def _take(self, view: memoryview, count: int, now: float) -> None:
        start, end = self._head, self._head + count
        chunk = view[start:end]
        offset = self.total
        if self._log_error is None:
            self._write_log(chunk)
        if self._cast is not None:
            self._cast.feed(chunk, now)
        sightings = self._scanner.feed(self._buffer, start, end, offset)
        if self.queries.wants(self._buffer, start, end):
            self.queries.feed(bytes(chunk), bytes(self._tail[-8192:]), offset, now)
        with self.condition:
            self._tail += chunk[-_TAIL:]
            if len(self._tail) > 2 * _TAIL:
                del self._tail[:-_TAIL]
            self.total = offset + count
            self.last_at = now
            self._report(sightings)
            self.condition.notify_all()
            for signal in self._listeners:
                signal.set()
        self._sent_before = self.outbox.sent

    def _write_log(self, chunk: memoryview) -> None:
        try:
            while chunk:
                chunk = chunk[os.write(self._log_fd, chunk) :]
        except OSError as error:
            # Draining goes on: a guest that stands still would hide what is wrong.
            self._log_error = error
            lost = self._log_lost()
            self._set_failure(Failure(self._log_lost, self.total, type(lost)))

    def _log_lost(self) -> HarnessError:
        error = self._log_error
        if error is not None and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return DiskFullError(
                f"no space left for the console log of {self.name}",
                evidence=str(self.log),
                hint="free space where the evidence is written, then run again",
            )
        reason = error.strerror if error is not None else "it was cut short by somebody else"
        return StoreError(f"the console log {self.log} is incomplete: {reason}")

    def _ended(self) -> None:
        self._settle(time.monotonic())
        error = self._on_eof() if self._on_eof is not None else None
        if error is None:
            error = QemuExitedError(
                f"the console of {self.name} was closed by the guest's side",
                evidence=self.evidence(),
                hint="QEMU ended: see its stderr and how the log ends",
            )
        known = error
        self._set_failure(Failure(lambda: known, self.total, type(error), final=True))

    def _set_failure(self, failure: Failure) -> None:
        with self.condition:
            self.failures.set(failure)
            for signal in self._listeners:
                signal.set()
        self._aborted.set()

    def _reply(self, data: bytes) -> None:
        if self.outbox.room:
            # Where the cursor is, line editors ask at their prompt. Behind what was typed there
            # meanwhile, the answer would be taken for typed text.
            self.outbox.reply(data, self._sent_before if data.endswith(b"R") else None)

    def _explain(self, sighting: Sighting) -> BaseException:
        w = sighting.watcher
        return w.error(
            f"{self.name}: {w.what}: {sighting.line}", evidence=self.evidence(), hint=w.hint
        )
