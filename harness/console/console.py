"""The console of one machine: what tests and people do with it.

The parts are modules of their own: :mod:`~harness.console.stream` drains and logs,
:mod:`~harness.console.watch` finds what ends waits, :mod:`~harness.console.expect` matches,
:mod:`~harness.console.shell` runs commands, :mod:`~harness.console.conversation` knows how far the
talk has got, :mod:`~harness.console.view` shows the screen.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness import deadline as deadlines
from harness.console import attach as person
from harness.console.conversation import Conversation
from harness.console.expect import (
    WINDOW,
    Match,
    Pattern,
    describe,
    regex_searcher,
    text_searcher,
)
from harness.console.failures import Expected
from harness.console.keys import key_bytes
from harness.console.shell import Result
from harness.console.stream import Stream
from harness.console.terminal import Screen
from harness.console.view import View
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
        self._talk = Conversation(self._stream)
        self._view = View(self._stream, (columns, rows))

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
        limit = deadlines.of(deadline, EXPECT_SECONDS)
        return self._talk.search(regex_searcher(wanted), describe(wanted), limit, since, window)

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
        limit = deadlines.of(deadline, EXPECT_SECONDS)
        return self._talk.search(text_searcher(wanted), describe(wanted), limit, since, window)

    def mark(self) -> int:
        """Return the place the output has reached, for :meth:`since` and :meth:`expect`."""
        return self._stream.total

    def skip(self) -> int:
        """Let the next :meth:`expect` or :meth:`login` see only later output; return a mark."""
        return self._talk.skip()

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
        self._talk.send(raw, deadlines.of(deadline, SEND_SECONDS))

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
        application = self._view.application_keys
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
        self._talk.log_in(user, password, prompt, deadlines.of(deadline, LOGIN_SECONDS))

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
        result = self._talk.run(command, deadlines.of(deadline, RUN_SECONDS))
        if check and not result.ok:
            raise CommandError(
                f"{self.name}: `{command}` ended with status {result.status}",
                evidence=result.stdout or str(self.log),
                hint=f"the whole console is in {self.log}",
            )
        return result

    def export_shell(self) -> tuple[int, str] | None:
        """Return what the console of a fork needs to go on with this shell; ``None`` without one."""
        return self._talk.export_shell()

    def adopt_shell(self, count: int, up: str) -> None:
        """Go on with the shell of the machine that this one was forked from."""
        self._talk.adopt_shell(count, up)

    @property
    def logged_in(self) -> bool:
        """Whether :meth:`run` has a shell, as far as is known."""
        return self._talk.logged_in

    def leave(self, deadline: Limit = None) -> None:
        """Give the console back as it was before :meth:`login`: a prompt, with echo.

        Raises:
            WaitTimeoutError: if the prompt does not come until the deadline; 10 s unless given.
        """
        self._talk.leave(deadlines.of(deadline, SEND_SECONDS))

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
        self._talk.forget_login()

    # The screen.

    @property
    def screen(self) -> Screen:
        """What a person would see now."""
        return self._view.screen

    def wait_for_screen(self, wanted: str | re.Pattern[str], deadline: Limit = None) -> Screen:
        """Wait until a text is on the screen, or what fits a regular expression.

        Raises:
            WaitTimeoutError: at the deadline, 60 s unless given; it shows the screen.
            HarnessError: the console's failure.
        """
        return self._view.wait_for(wanted, deadlines.of(deadline, EXPECT_SECONDS))

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
        with self._talk.handed_over(SEND_SECONDS):
            return person.attach(
                self._stream,
                sys.stdin.fileno() if stdin is None else stdin,
                sys.stdout.fileno() if stdout is None else stdout,
            )


def _listed(patterns: Pattern | Sequence[Pattern]) -> list[Pattern]:
    if isinstance(patterns, (str, bytes, re.Pattern)):
        return [patterns]
    return list(patterns)
