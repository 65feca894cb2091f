"""The reading side of a console: a thread that drains the wire into the log.

The thread reads all the time: a guest whose serial port is not read stands still, or loses output.
Each chunk goes to the raw log, the recording, the watchers and the query responder; then the waits are
woken. The log is also the buffer: waits read from it, however far they are behind, so memory is bounded
and no output is lost. An *offset* is the position of a byte in the output of this console.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from harness.console.batch import Batching
from harness.console.cast import COALESCE, CastWriter
from harness.console.complaints import TIMING
from harness.console.failures import Failure, Failures
from harness.console.outbox import Outbox, Signal
from harness.console.query import QueryResponder
from harness.console.suspects import Suspects
from harness.console.text import last_lines
from harness.console.watch import Scanner, Sighting, Watcher
from harness.console.wire import Wire
from harness.deadline import SUDDEN, UNSCALED, Scale
from harness.errors import DiskFullError, HarnessError, QemuExitedError, StoreError
from harness.evidence.findings import Findings

_CHUNK: Final = 1024 * 1024
_TAIL: Final = 64 * 1024
_LINES: Final = 25


class Stream:
    """Drains a wire; owns the wire, the drain thread, the log and the recording.

    Args:
        wire: The console's end of the line to the guest; the stream closes it.
        log: The file of the raw log. It is appended to, so that all boots of a machine share it.
        cast: The file of the recording; ``None`` records nothing.
        name: The name of the machine, for messages.
        watchers: The watchers whose errors end waits.
        size: The columns and rows of the terminal.
        findings: Records what the guest's kernel complains of.
        on_eof: Returns the error for a connection that the guest's side closed; called in the
            drain thread.
        on_failure: Called with the error of a watcher that ends the waits; in the drain thread.
        scale: The scale of the machine's deadlines.

    Attributes:
        total: The number of bytes of output so far, which is the offset of the next byte.
        last_at: The time of the last output, in monotonic seconds.
        condition: Notified of output and of failures.
        failures: The failure that ends waits.
        suspects: The words of a crash that a command may have printed.
        findings: What the guest's kernel complained of.
        outbox: The writing side.
        queries: Answers the queries of the guest.

    Raises:
        OSError: The log or the recording cannot be created.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        log: Path,
        cast: Path | None,
        name: str,
        watchers: Iterable[Watcher],
        size: tuple[int, int],
        findings: Findings,
        on_eof: Callable[[], BaseException] | None,
        on_failure: Callable[[BaseException], None] | None = None,
        scale: Scale = UNSCALED,
    ) -> None:
        self.name = name
        self.log = log
        self.scale = scale
        self.findings = findings
        self._scale = scale
        self._wire = wire
        self._on_eof = on_eof
        self._on_failure = on_failure
        self._closing = threading.Event()
        self._over = False
        self._unreported = False
        self._sent_before = 0
        self._listeners: list[Signal] = []
        wire.setblocking(False)
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
        self.failures = Failures(self.condition, self._explain, self.excuse, scale)
        self.suspects = Suspects(self.condition, self.read, self._fail, scale)
        self._aborted = Signal()
        self._poke = Signal()
        self.outbox = Outbox(wire, self._aborted, self._poke)
        self.queries = QueryResponder(self._reply, columns=columns, rows=rows)
        self._scanner = Scanner(watchers)
        self._thread = threading.Thread(target=self._run, name=f"console-{name}", daemon=True)
        self._thread.start()

    # Waiting and reading: any thread.

    @property
    def readable(self) -> int:
        """The offset up to which waits search: the end of the output, or the failure before it."""
        failure = self.failures.current
        return self.total if failure is None else min(self.total, failure.offset)

    def wait_past(self, offset: int, timeout: float | None, *, check: bool = True) -> int:
        """Wait until there is output past an offset; return :attr:`readable`.

        A result of ``offset`` or less means that the timeout passed; without ``check``, also that
        the console has failed.

        Args:
            offset: The offset.
            timeout: Seconds; ``None`` waits without limit.
            check: Whether to raise the failure.

        Raises:
            HarnessError: The console has failed, and no output past the offset precedes it.
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
        self.failures.check()

    def read(self, start: int, end: int) -> bytes:
        """Return the output between two offsets, from the log.

        Raises:
            DiskFullError: The log could not be written that far.
            StoreError: The log cannot be read.
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
        """Return the last ``count`` lines of output as plain text."""
        with self.condition:
            data = bytes(self._tail[-_TAIL:])
        return last_lines(data, count)

    @property
    def ended(self) -> bool:
        """Whether the console is closed, by either side; its listeners have been set if it is."""
        return self._over or self._closing.is_set()

    @property
    def log_start(self) -> int:
        """The size of the log before the output of this console: earlier boots share it."""
        return self._base

    def silent_for(self) -> float:
        """Return the seconds since the last output."""
        return max(0.0, time.monotonic() - self.last_at)

    def evidence(self) -> str:
        """Return the path of the log, the findings and the last lines, for an error."""
        complaints = str(self.findings)
        heard = f"the guest complained: {complaints}" if complaints else ""
        parts = [str(self.log), heard, self.tail()]
        return "\n".join(filter(None, parts))

    def fail(self, error: BaseException) -> None:
        """End every wait with ``error``, at the current end of the output; never blocks."""
        with self.condition:
            self._set_failure(Failure(lambda: error, self.total, type(error)))

    def clear_failure(self) -> list[Sighting]:
        """Clear the failure; return the sightings of all watchers."""
        # The signal and the failure change together, or the failure of another thread would lose it.
        with self.condition:
            sightings = self.failures.clear()
            if self.failures.current is None:
                self._aborted.clear()
        return sightings

    def listen(self, signal: Signal) -> None:
        """Set a signal at each output and each failure, until :meth:`unlisten`."""
        with self.condition:
            self._listeners.append(signal)

    def unlisten(self, signal: Signal) -> None:
        """Stop setting a signal."""
        with self.condition:
            self._listeners.remove(signal)

    def close(self) -> None:
        """Stop the drain thread, close the files and the wire, and end all waits."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._poke.set()
        self._thread.join()
        closed = HarnessError(f"the console of {self.name} is closed", evidence=str(self.log))
        self._set_failure(Failure(lambda: closed, self.total, HarnessError, final=True))
        self._wire.close()
        if self._cast is not None:
            self._cast.close()
        os.close(self._log_fd)
        self._aborted.close()
        self._poke.close()

    # The drain thread.

    def _run(self) -> None:
        poller = select.poll()
        incoming, poke = self._wire.incoming, self._poke.fileno()
        poller.register(incoming, select.POLLIN)
        poller.register(poke, select.POLLIN)
        view = memoryview(self._buffer)
        space = view[self._head :]
        writing = False
        batching = Batching()
        pause = 0.0
        # Each pause is bounded, and the end of the console ends it.
        while not self._closing.wait(pause) if pause else not self._closing.is_set():
            pause = 0.0
            due = self._due()
            events = poller.poll(None if due is None else due * 1000 + 1)
            now = time.monotonic()
            if not events:
                self._settle(now)
            for fd, _ in events:
                if fd == poke:
                    self._poke.clear()
                elif fd == incoming:
                    try:
                        count = self._wire.recv_into(space)
                    except (BlockingIOError, InterruptedError):
                        continue
                    except OSError:
                        count = 0
                    if not count:
                        self._ended()
                        return
                    self._take(view, count, now)
                    pause = batching.pause(count, now)
            if self._unreported:
                self._report_failure()
            if self.outbox.waiting:
                self.outbox.write_replies()
            if writing != self.outbox.waiting:
                writing = not writing
                if writing:
                    poller.register(self._wire.outgoing, select.POLLOUT)
                else:
                    poller.unregister(self._wire.outgoing)

    def _due(self) -> float | None:
        """Return the seconds until :meth:`_settle` must run; ``None`` if nothing is pending."""
        due = self._cast.due(time.monotonic()) if self._cast is not None else None
        if self._scanner.late:
            due = COALESCE if due is None else min(due, COALESCE)
        quiet = self.suspects.due(self.silent_for())
        if quiet is not None:
            due = quiet if due is None else min(due, quiet)
        return due

    def _settle(self, now: float) -> None:
        """Process the output that was held back while it arrived in small pieces."""
        if self._cast is not None:
            self._cast.flush(now)
        sightings = self._scanner.flush()
        self._hear(sightings)
        self._record(sightings)
        self.suspects.settle(self.silent_for())

    def _hear(self, sightings: list[Sighting]) -> None:
        """Record the complaints among the sightings; holds no lock, because it writes a file."""
        for sighting in sightings:
            if sighting.watcher.error is None:
                self.findings.hear(sighting.watcher.name, sighting.watcher.what, sighting.line)

    def _record(self, sightings: list[Sighting]) -> None:
        if sightings:
            with self.condition:
                self._fail([one for one in sightings if not self.suspects.hold(one, self.total)])

    def _fail(self, sightings: list[Sighting]) -> None:
        """Record the sightings of crashes, and let the drain thread report the failure."""
        with self.condition:
            # A list, not any(): each of them is recorded.
            if True in [self.failures.add(sighting) for sighting in sightings]:
                self._aborted.set()
                self._unreported = True
                self._poke.set()

    def _report_failure(self) -> None:
        """Call ``on_failure`` if a watcher saw a new failure; holds no lock."""
        failure = self.failures.current
        if self._unreported and failure is not None and self._on_failure is not None:
            self._on_failure(failure.build())
        self._unreported = False

    def _take(self, view: memoryview, count: int, now: float) -> None:
        start, end = self._head, self._head + count
        chunk = view[start:end]
        offset = self.total
        if self._log_error is None:
            self._write_log(chunk)
        if self._cast is not None:
            self._cast.feed(chunk, now)
        sightings = self._scanner.feed(self._buffer, start, end, offset)
        self._hear(sightings)
        if self.queries.concerns(self._buffer, start, end):
            self.queries.feed(bytes(chunk), bytes(self._tail[-8192:]), offset, now)
        with self.condition:
            self._tail += chunk[-_TAIL:]
            if len(self._tail) > 2 * _TAIL:
                del self._tail[:-_TAIL]
            self.total = offset + count
            self.last_at = now
            self._record(sightings)
            self.suspects.seen(self._tail, count)
            self.condition.notify_all()
            for signal in self._listeners:
                signal.set()
        self._sent_before = self.outbox.sent

    def _write_log(self, chunk: memoryview) -> None:
        try:
            while chunk:
                chunk = chunk[os.write(self._log_fd, chunk) :]
        except OSError as error:
            # Keep draining: a blocked guest would hide the cause.
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
        reason = error.strerror if error is not None else "another process truncated it"
        return StoreError(f"the console log {self.log} is incomplete: {reason}")

    def _ended(self) -> None:
        self._settle(time.monotonic())
        self.suspects.closed()
        error = self._on_eof() if self._on_eof is not None else None
        if error is None:
            error = QemuExitedError(
                f"the console of {self.name} was closed by the guest's side",
                evidence=self.evidence(),
                hint="QEMU ended: see its stderr and the end of the log",
                pressure=self._scale.pressure(SUDDEN),
            )
        reason = error
        self._over = True
        self._set_failure(Failure(lambda: reason, self.total, type(error), final=True))

    def _set_failure(self, failure: Failure) -> None:
        with self.condition:
            self.failures.set(failure)
            for signal in self._listeners:
                signal.set()
            self._aborted.set()

    def _reply(self, data: bytes) -> None:
        if self.outbox.room:
            # Line editors query the cursor position at their prompt. If text was typed since, the
            # answer would arrive after it and be read as typed text, so the outbox drops it.
            self.outbox.reply(data, self._sent_before if data.endswith(b"R") else None)

    def excuse(self) -> str:
        """Return why the host may be the cause of a failure by time now; empty if it is not.

        It is if the host was under pressure in this boot, and the guest complained of its clock or of
        a limit of its own that passed. Either alone is no excuse.
        """
        complaints = self.findings.in_this_boot(TIMING)
        pressure = self._scale.pressure(self.findings.boot_seconds) if complaints else ""
        return f"{pressure}; in this boot: {', '.join(map(str, complaints))}" if pressure else ""

    def _explain(self, sighting: Sighting, excuse: str) -> BaseException:
        w = sighting.watcher
        kind = w.error or HarnessError
        allow = f"`with machine.expecting({kind.__name__})`"
        return kind(
            f"{self.name}: {w.what}: {sighting.line}{sighting.note}",
            evidence=self.evidence(),
            hint=f"{w.hint}; where the test causes it on purpose: {allow}",
            pressure=excuse,
        )
