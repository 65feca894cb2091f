"""The console of one machine: what tests and people do with it.

The parts are modules of their own: :mod:`~harness.console.stream` drains and logs,
:mod:`~harness.console.watch` finds what ends waits, :mod:`~harness.console.expect` matches,
:mod:`~harness.console.shell` runs commands, :mod:`~harness.console.terminal` shows the screen.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness import deadline as deadlines
from harness.console import attach as person
from harness.console.expect import (
    WINDOW,
    Match,
    Pattern,
    describe,
    regex_searcher,
    search,
    text_searcher,
    timeout_error,
)
from harness.console.failures import Expected
from harness.console.keys import key_bytes
from harness.console.login import log_in, wait_for_prompt
from harness.console.shell import Driver, Result
from harness.console.stream import Stream
from harness.console.terminal import BACKLOG, PIECE, Screen, Terminal
from harness.console.watch import DEFAULT_WATCHERS, Sighting, Watcher
from harness.deadline import Deadline
from harness.errors import CommandError, GuestError, HarnessError, WaitTimeoutError

EXPECT_SECONDS: Final = 60.0
RUN_SECONDS: Final = 60.0
LOGIN_SECONDS: Final = 120.0
SEND_SECONDS: Final = 10.0

Limit = Deadline | float | None
"""A deadline, seconds on a good host (they are scaled), or ``None`` for the method's own."""


class Console:
    """The serial console of one guest; a context manager, and the owner of the socket it is given.

    From its making on, the guest's output is drained into the log, whether anybody waits or not.
    Every wait takes a deadline, and ends at once when a watcher sees that the guest is lost, when
    :meth:`fail` is called, or when the connection ends. What the guest said before still counts: a
    wait that earlier output satisfies succeeds.

    ``expect``, ``send`` and ``run`` are one conversation: use them from one thread at a time. All
    else is safe from any thread.

    Args:
        sock: A connected stream socket whose other end is the guest's serial port.
        log: The raw log: every byte the guest wrote. It is appended to.
        cast: The asciicast recording, or ``None`` for none.
        name: The machine's name, for messages.
        watchers: What ends waits; see :data:`~harness.console.watch.DEFAULT_WATCHERS`.
        columns: Width of the terminal in characters.
        rows: Height of the terminal in characters.
        on_eof: Makes the error for a connection that the guest's side closed, for who knows why it
            did. Runs in the drain thread; until it returns, waits do not know of the end.
        on_failure: Told of a failure that a watcher saw, for whoever owns other waits on the same
            guest. Runs in the drain thread.

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
        watchers: Iterable[Watcher] = DEFAULT_WATCHERS,
        columns: int = 80,
        rows: int = 24,
        on_eof: Callable[[], BaseException] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._stream = Stream(
            sock,
            log=log,
            cast=cast,
            name=name,
            watchers=watchers,
            size=(columns, rows),
            on_eof=on_eof,
            on_failure=on_failure,
        )
        self._driver = Driver(self._stream)
        self._talking = threading.RLock()
        self._position = 0
        self._typed_at = 0
        self._reset_at = 0
        self._prompt: str | None = None
        self._size = (columns, rows)
        self._looking = threading.Lock()
        self._terminal: Terminal | None = None
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop draining, write what is pending, close the socket. Waits in other threads end."""
        self._stream.close()

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._stream.name

    @property
    def log(self) -> Path:
        """Where the raw log is."""
        return self._stream.log

    # Reading.

    def expect(
        self,
        patterns: Pattern | Sequence[Pattern],
        deadline: Limit = None,
        *,
        since: int | None = None,
        window: int = WINDOW,
    ) -> Match:
        """Wait until the output matches a regular expression, with pexpect's rules.

        The search begins behind the last match. Of several patterns the one that matches first in
        the output wins; of those, the first in the list. The dot fits newlines. Note that, as with
        pexpect, ``.*`` at the end of a pattern fits whatever happens to be there.

        Args:
            patterns: One or several; text is taken as UTF-8.
            deadline: When to give up; 60 s unless given.
            since: Search from this mark instead (see :meth:`mark`).
            window: Bytes of the longest match that is certain to be found.

        Raises:
            WaitTimeoutError: at the deadline.
            HarnessError: the console's failure.
            UsageError: if a pattern is no regular expression.
        """
        wanted = _listed(patterns)
        return self._search(regex_searcher(wanted), describe(wanted), deadline, since, window)

    def expect_exact(
        self,
        texts: str | bytes | Sequence[str | bytes],
        deadline: Limit = None,
        *,
        since: int | None = None,
    ) -> Match:
        """Wait until the output has a text; otherwise as :meth:`expect`."""
        wanted = [texts] if isinstance(texts, (str, bytes)) else list(texts)
        window = max(len(text) * 4 for text in wanted)
        return self._search(text_searcher(wanted), describe(wanted), deadline, since, window)

    def _search(
        self, searcher: object, what: str, limit: Limit, since: int | None, window: int
    ) -> Match:
        deadline = deadlines.of(limit, EXPECT_SECONDS)
        with self._talking:
            start = self._position if since is None else since
            found = search(
                self._stream,
                searcher,
                start,
                deadline,
                lambda: timeout_error(self._stream, what, deadline),
                window=window,
            )
            self._position = max(self._position, found.end)
            return found

    def mark(self) -> int:
        """Return the place the output has reached, for :meth:`since` and :meth:`expect`."""
        return self._stream.total

    def skip(self) -> int:
        """Let the next :meth:`expect` or :meth:`login` see only later output; return a mark."""
        with self._talking:
            self._position = self._typed_at = self._stream.total
            return self._position

    def since(self, mark: int) -> str:
        """Return all output since a mark, as it came; what is no UTF-8 is replaced.

        Raises:
            StoreError: if the log cannot be read.
        """
        return self._stream.read(mark, self._stream.total).decode("utf-8", "replace")

    def last_output(self, lines: int = 25) -> str:
        """Return the last lines of output, without escape sequences."""
        return self._stream.tail(lines)

    def silent_for(self) -> float:
        """Return for how many seconds the guest has printed nothing."""
        return self._stream.silent_for()

    # Writing.

    def send(self, data: str | bytes, deadline: Limit = None) -> None:
        """Send text to the guest, whole and in order.

        It is delivered to the guest's serial port, which takes it as its FIFO has room. A guest's
        terminal drops input that no program reads: past 4095 bytes of a line, or some 64 KiB.

        Raises:
            WaitTimeoutError: if the guest does not take it until the deadline; 10 s unless given.
            HarnessError: the console's failure.
        """
        raw = data.encode() if isinstance(data, str) else data
        limit = deadlines.of(deadline, SEND_SECONDS)
        self._stream.check()
        self._typed_at = self._stream.total
        left = self._stream.outbox.send(raw, limit)
        if left:
            self._stream.check()
            raise timeout_error(
                self._stream, f"the guest to take {left} of {len(raw)} bytes of input", limit
            )

    def send_line(self, text: str | bytes = "", deadline: Limit = None) -> None:
        """Send text and Enter, which is a carriage return, as on a keyboard; see :meth:`send`."""
        self.send((text.encode() if isinstance(text, str) else text) + b"\r", deadline)

    def press(self, *keys: str, deadline: Limit = None) -> None:
        """Press keys one after the other: ``"Down"``, ``"F2"``, ``"Ctrl-C"``, ``"Alt-x"``, ``"y"``.

        Raises:
            UnknownNameError: if there is no such key; nothing is sent then.
            WaitTimeoutError: as :meth:`send`.
            HarnessError: the console's failure.
        """
        with self._looking:
            application = self._catch_up(self._stream.total).application_keys
        data = b"".join(key_bytes(key, application=application) for key in keys)
        self.send(data, deadline)

    # The shell.

    def login(
        self,
        user: str | None = "root",
        password: str | None = None,
        *,
        prompt: str | None = None,
        deadline: Limit = None,
    ) -> None:
        """Wait for the login prompt, log in, and get ready for :meth:`run`.

        Args:
            user: Who logs in; ``None`` where the console has a shell already.
            password: The password, or ``None`` if none is asked for.
            prompt: A regular expression for the end of the shell's prompt, if that is not one of
                ``# $ % >``.
            deadline: When to give up; 120 s unless given.

        Raises:
            LoginError: if the login is refused or ends at once.
            WaitTimeoutError: at the deadline.
            HarnessError: the console's failure.
        """
        limit = deadlines.of(deadline, LOGIN_SECONDS)
        with self._talking:
            self._driver.active = False
            self._prompt = prompt
            # A prompt waits for its answer, whatever was printed or looked for after it.
            spoken = min(self._driver.position, self._line_start())
            start = max(self._typed_at, spoken, self._reset_at)
            log_in(self._stream, self._driver, start, user, password, prompt, limit)
            self._position = max(self._position, self._driver.position)

    def _line_start(self) -> int:
        """Return where the last line begins, which may be a prompt."""
        end = self._stream.total
        data = self._stream.read(max(0, end - 512), end)
        return end - len(data) + max(data.rfind(b"\n"), data.rfind(b"\r")) + 1

    def run(self, command: str, deadline: Limit = None, *, check: bool = False) -> Result:
        """Run a command in the guest; return its output and its status.

        Neither noise on the line nor the command's output can forge or break the result. Each
        command has a subshell of its own, ``/dev/null`` for input, and one stream for output and
        errors; NUL bytes of the output are lost. The next :meth:`expect` begins behind it.

        Args:
            command: What ``sh -c`` would take; it may have several lines.
            deadline: When to give up; 60 s unless given. The command is then interrupted.
            check: Whether a status other than zero is an error.

        Raises:
            CommandError: with ``check``, if the status is not zero.
            LoginError: if nobody is logged in, or not any more.
            WaitTimeoutError: at the deadline.
            UsageError: if the command has a NUL or a Ctrl-C byte.
            HarnessError: the console's failure.
        """
        limit = deadlines.of(deadline, RUN_SECONDS)
        with self._talking:
            try:
                result = self._driver.run(command, limit)
            finally:
                self._position = max(self._position, self._driver.position)
        if check and not result.ok:
            raise CommandError(
                f"{self.name}: `{command}` ended with status {result.status}",
                evidence=result.stdout or str(self.log),
                hint=f"the whole console is in {self.log}",
            )
        return result

    def export_shell(self) -> tuple[int, str] | None:
        """Return what the console of a fork needs to go on with this shell; ``None`` without one."""
        with self._talking:
            return self._driver.export()

    def adopt_shell(self, count: int, up: str) -> None:
        """Go on with the shell of the machine that this one was forked from."""
        with self._talking:
            self._driver.adopt(count, up)

    @property
    def logged_in(self) -> bool:
        """Whether :meth:`run` has a shell, as far as is known."""
        return self._driver.active

    def leave(self, deadline: Limit = None) -> None:
        """Give the console back as it was before :meth:`login`: a prompt, with echo.

        Raises:
            WaitTimeoutError: if the prompt does not come until the deadline; 10 s unless given.
        """
        limit = deadlines.of(deadline, SEND_SECONDS)
        with self._talking:
            if self._driver.active:
                mark = self._stream.total
                self._driver.leave(limit)
                found = wait_for_prompt(self._stream, mark, self._prompt, limit)
                self._position = max(self._position, found.end)

    @contextlib.contextmanager
    def interactive(self, deadline: Limit = None) -> Iterator[None]:
        """Have a prompt and echo in the block, as a person has, and :meth:`run` again after it.

        For programs that ask: send their name, expect their questions. The block ends at a prompt,
        also when it raises; only a wait that timed out leaves the console as it is.

        Args:
            deadline: For leaving the shell and for taking it back; 10 s and 120 s unless given.
        """
        self.leave(deadline)
        try:
            yield
        except WaitTimeoutError:
            raise
        except BaseException:
            with contextlib.suppress(HarnessError):
                self.login(None, deadline=deadline)
            raise
        self.login(None, deadline=deadline)

    def forget_login(self) -> None:
        """Take note that the guest was reset: there is no shell, and an older prompt is none.

        It takes no lock: whoever learns of a reset must not wait for a wait.
        """
        self._reset_at = self._stream.total
        self._driver.active = False

    # The screen.

    @property
    def screen(self) -> Screen:
        """What a person would see now."""
        with self._looking:
            return self._catch_up(self._stream.total).snapshot()

    def wait_for_screen(self, wanted: str | re.Pattern[str], deadline: Limit = None) -> Screen:
        """Wait until a text is on the screen, or what fits a regular expression.

        Raises:
            WaitTimeoutError: at the deadline, 60 s unless given; it shows the screen.
            HarnessError: the console's failure.
        """
        limit = deadlines.of(deadline, EXPECT_SECONDS)
        while True:
            with self._looking:
                end = self._stream.readable
                screen = self._look(end, wanted)
            if screen is not None:
                return screen
            if self._stream.wait_past(end, limit.timeout()) <= end:
                shown = wanted if isinstance(wanted, str) else wanted.pattern
                error = timeout_error(self._stream, f"{shown!r} on the screen", limit)
                error.add_note(f"on the screen:\n{self.screen.text}")
                raise error

    def _look(self, end: int, wanted: str | re.Pattern[str]) -> Screen | None:
        """Show the output up to an offset; return the first screen with what is wanted on it."""
        if end - self._shown > BACKLOG:
            self._catch_up(end - BACKLOG)
        while True:
            terminal = self._catch_up(min(end, max(self._shown, 0) + PIECE))
            screen = terminal.snapshot()
            if screen.contains(wanted):
                return screen
            if self._shown >= end:
                return None

    def _catch_up(self, end: int) -> Terminal:
        if self._terminal is None:
            columns, rows = self._size
            self._terminal = Terminal(columns=columns, rows=rows)
        if end - self._shown > BACKLOG:
            self._terminal.reset()
            self._shown = end - BACKLOG
        if end > self._shown:
            self._terminal.feed(self._stream.read(self._shown, end))
            self._shown = end
        return self._terminal

    # Failure.

    def fail(self, error: BaseException) -> None:
        """End every wait, now and until cleared, with an error: QEMU died, the guest stopped."""
        self._stream.fail(error)

    def check(self) -> None:
        """Raise the failure, if there is one."""
        self._stream.check()

    def clear_failure(self) -> list[Sighting]:
        """Forget the failure, as after a reboot; return all that the watchers have seen."""
        return self._stream.clear_failure()

    def expecting(self, *kinds: type[GuestError]) -> AbstractContextManager[Expected]:
        """Within the scope, let these errors pass: the test provokes them.

        ``with console.expecting(PanicError) as panic: ...; panic.wait(deadline)``
        """
        return self._stream.failures.expecting(*kinds)

    def ignore(self, *kinds: type[GuestError]) -> None:
        """Let these errors pass from now on; they are recorded all the same."""
        self._stream.failures.ignore(*kinds)

    @property
    def sightings(self) -> list[Sighting]:
        """What the watchers have seen since the last :meth:`clear_failure`; at most a hundred."""
        return list(self._stream.failures.sightings)

    # A person.

    def attach(self, stdin: int | None = None, stdout: int | None = None) -> str:
        """Join a person's terminal to the console until they press Ctrl-].

        A shell of :meth:`login` is left first, so that the person has a prompt; :meth:`login` with
        ``user=None`` takes it back.

        Args:
            stdin: The descriptor the person types at; the process's own unless given.
            stdout: The descriptor they look at; the process's own unless given.

        Returns:
            Why it ended: ``left``, ``closed`` (the console ended) or ``gone`` (their terminal did).
        """
        with self._talking:
            if self._driver.active and self._stream.failures.current is None:
                # A person can cope without a prompt, and may want to see why there is none.
                with contextlib.suppress(WaitTimeoutError):
                    self.leave()
            try:
                return person.attach(
                    self._stream,
                    sys.stdin.fileno() if stdin is None else stdin,
                    sys.stdout.fileno() if stdout is None else stdout,
                )
            finally:
                self._position = self._stream.total
                self._typed_at = self._line_start()


def _listed(patterns: Pattern | Sequence[Pattern]) -> list[Pattern]:
    if isinstance(patterns, (str, bytes, re.Pattern)):
        return [patterns]
    return list(patterns)
