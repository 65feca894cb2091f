"""The console of one machine, with the methods that tests and people use.

:class:`Console` joins parts that are modules of their own: :mod:`~harness.console.stream` reads
and logs, :mod:`~harness.console.watch` detects failures, :mod:`~harness.console.expect` matches
patterns, :mod:`~harness.console.shell` runs commands, :mod:`~harness.console.conversation` keeps
the position of the next search, :mod:`~harness.console.view` shows the screen.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.console.attach import attach
from harness.console.complaints import COMPLAINTS
from harness.console.conversation import Conversation
from harness.console.dialogue import Dialogue
from harness.console.expect import (
    WINDOW,
    Match,
    Pattern,
    describe,
    misread_expression,
    misread_text,
    regex_searcher,
    text_searcher,
)
from harness.console.failures import Expected
from harness.console.keys import key_bytes
from harness.console.known import remarks
from harness.console.outbox import Signal
from harness.console.stream import Stream
from harness.console.terminal import Screen
from harness.console.view import View
from harness.console.watch import DEFAULT_WATCHERS, Sighting, Watcher
from harness.console.wire import Wire
from harness.deadline import UNSCALED, Deadline, Limit, Scale, by_name
from harness.errors import GuestError, HarnessError, WaitTimeoutError
from harness.evidence.findings import Findings
from harness.evidence.timeline import Timeline
from harness.result import Result

EXPECT_SECONDS: Final = 60.0
RUN_SECONDS: Final = 60.0
LOGIN_SECONDS: Final = 120.0
SEND_SECONDS: Final = 10.0


class Console:
    """The serial console of one guest; a context manager that owns its wire.

    A thread reads the guest's output into the log from construction to :meth:`close`, whether or
    not a test waits. Each method that waits takes a ``deadline``: a
    :class:`~harness.deadline.Deadline`, or seconds on a good host, which the scale stretches, or
    ``None`` for the method's default.

    A wait ends at once when a watcher sees a failure, when :meth:`fail` is called, or when the
    connection ends. A failure has a position in the output: a wait that matches output from before
    that position still succeeds.

    :meth:`expect`, :meth:`send` and :meth:`run` form one conversation, so use them from one thread
    at a time. All other methods are safe from any thread.

    Args:
        wire: The console's end of the line to the guest; see :func:`harness.console.wire.pair`.
        log: The file of the raw log, which gets every byte of output; it is appended to.
        cast: The file of the asciicast recording; ``None`` records nothing.
        name: The name of the machine, for messages.
        watchers: The watchers whose errors end waits.
        findings: Records what the guest's kernel complains of; in memory by default.
        columns: The width of the terminal in characters.
        rows: The height of the terminal in characters.
        on_eof: Returns the error for a connection that the guest's side closed. It is called in
            the drain thread, and no wait sees the end of the connection before it returns.
        on_failure: Called in the drain thread with the error of a watcher that ends the waits, so
            that the failure can reach the rest of the failure scope.
        scale: The scale of the machine's deadlines.
        waiting: Called with what a wait waits for and its deadline; returns the context of the wait.

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
        watchers: Iterable[Watcher] = DEFAULT_WATCHERS,
        findings: Findings | None = None,
        columns: int = 80,
        rows: int = 24,
        on_eof: Callable[[], BaseException] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        scale: Scale = UNSCALED,
        waiting: Callable[[str, Deadline], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._scale = scale
        self._waiting = waiting or (lambda awaited, limit: contextlib.nullcontext())
        self._stream = Stream(
            wire,
            log=log,
            cast=cast,
            name=name,
            watchers=(*watchers, *COMPLAINTS),
            size=(columns, rows),
            findings=findings or Findings(Timeline(), name),
            on_eof=on_eof,
            on_failure=on_failure,
            scale=scale,
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
        """Stop reading, write pending output to the files and close the wire.

        Waits in other threads end with an error. A second call does nothing.
        """
        self._stream.close()

    @property
    def name(self) -> str:
        """The name of the machine."""
        return self._stream.name

    @property
    def log(self) -> Path:
        """The file of the raw log."""
        return self._stream.log

    @property
    def log_start(self) -> int:
        """The size of the log before the output of this console: earlier boots share it."""
        return self._stream.log_start

    @property
    def ended(self) -> bool:
        """Whether the console is closed, by the guest's side or by this one."""
        return self._stream.ended

    def listen(self, signal: Signal) -> None:
        """Set a signal at each output, each failure and the end, until :meth:`unlisten`."""
        self._stream.listen(signal)

    def unlisten(self, signal: Signal) -> None:
        """Stop setting a signal."""
        self._stream.unlisten(signal)

    # Reading.

    def expect(
        self,
        patterns: Pattern | Sequence[Pattern],
        deadline: Limit = None,
        *,
        since: int | None = None,
        window: int = WINDOW,
    ) -> Match:
        """Wait until the output matches a regular expression, by the rules of pexpect.

        A ``str`` is a regular expression here, unlike in :meth:`wait_for_screen`; :meth:`expect_exact`
        takes plain texts. The search starts where the last match ended. Of several patterns, the one
        whose match starts first in the output wins; of those, the first in the list. The dot matches
        newlines, unless a compiled pattern says otherwise. As in pexpect, a pattern that ends in
        ``.*`` matches only the output that has arrived by then.

        Args:
            patterns: One or several regular expressions; ``str`` is matched as UTF-8.
            deadline: 60 s on a good host by default.
            since: A :meth:`mark` from which to search instead.
            window: The length in bytes up to which a match is certain to be found.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The console has failed, and no earlier output matches.
            UsageError: A pattern is not a regular expression.
        """
        listed = _listed(patterns)
        limit = self._scale.limit(deadline, EXPECT_SECONDS)
        awaited = describe(listed)
        with self._waiting(f"wait for {awaited}", limit):
            return self._talk.search(
                regex_searcher(listed),
                awaited,
                limit,
                since,
                window,
                functools.partial(misread_text, listed),
            )

    def expect_exact(
        self,
        texts: str | bytes | Sequence[str | bytes],
        deadline: Limit = None,
        *,
        since: int | None = None,
    ) -> Match:
        """Wait until the output contains a plain text; otherwise like :meth:`expect`."""
        listed = [texts] if isinstance(texts, (str, bytes)) else list(texts)
        window = max(len(text) * 4 for text in listed)
        limit = self._scale.limit(deadline, EXPECT_SECONDS)
        awaited = describe(listed)
        with self._waiting(f"wait for {awaited}", limit):
            return self._talk.search(
                text_searcher(listed),
                awaited,
                limit,
                since,
                window,
                functools.partial(misread_expression, listed),
            )

    def mark(self) -> int:
        """Return the current end of the output, for :meth:`since` and :meth:`expect`."""
        return self._stream.total

    def skip(self) -> int:
        """Make the next :meth:`expect` or :meth:`login` ignore all output so far; return a mark."""
        return self._talk.skip()

    def since(self, mark: int) -> str:
        """Return all output since a mark, unchanged; invalid UTF-8 is replaced.

        Raises:
            DiskFullError: The log could not be written that far.
            StoreError: The log cannot be read.
        """
        return self._stream.read(mark, self._stream.total).decode("utf-8", "replace")

    def last_output(self, lines: int = 25) -> str:
        """Return the last lines of output without escape sequences, for messages."""
        return self._stream.tail(lines)

    def silent_for(self) -> float:
        """Return the seconds since the last output."""
        return self._stream.silent_for()

    @property
    def findings(self) -> Findings:
        """What the guest's kernel complained of, such as RCU stalls; ``str()`` puts it in words."""
        return self._stream.findings

    def remarks(self) -> str:
        """Return the known boot loader's screen, if one is shown, and the findings, for messages."""
        return remarks(self._stream)

    def excuse(self) -> str:
        """Return why the host may be the cause of a failure by time now; empty if it is not."""
        return self._stream.excuse()

    # Typing.

    def send(self, data: str | bytes, deadline: Limit = None, *, paced: bool = False) -> None:
        """Type text, without Enter; ``str`` is sent as UTF-8.

        The call returns when the guest's serial port has accepted all bytes. The guest's terminal
        drops input that no program reads: beyond 4095 bytes of a line, or about 64 KiB in all.
        Firmware and boot loaders may drop everything beyond 15 characters: type paced there.

        Args:
            data: The text or the bytes.
            deadline: 10 s on a good host by default.
            paced: Whether to type a few characters at a time, each after the echo of those before,
                for a reader without flow control. The reader must echo.

        Raises:
            WaitTimeoutError: The deadline passed before the guest accepted all bytes, or echoed
                them.
            HarnessError: The console has failed.
        """
        raw = data.encode() if isinstance(data, str) else data
        self._talk.send(raw, self._scale.limit(deadline, SEND_SECONDS), paced=paced)

    def send_line(
        self, text: str | bytes = "", deadline: Limit = None, *, paced: bool = False
    ) -> None:
        """Type text and Enter, which is a carriage return; otherwise like :meth:`send`."""
        raw = text.encode() if isinstance(text, str) else text
        self.send(raw + b"\r", deadline, paced=paced)

    def press(self, *keys: str, deadline: Limit = None) -> None:
        """Press keys in order: ``"Down"``, ``"F2"``, ``"Ctrl-C"``, ``"Alt-x"``, ``"y"``.

        Args:
            keys: Names of keys, as in :data:`KEY_NAMES`, or single characters.
            deadline: 10 s on a good host by default.

        Raises:
            UnknownNameError: A key does not exist. No key is sent in this case.
            WaitTimeoutError: The deadline passed before the guest accepted all bytes.
            HarnessError: The console has failed.
        """
        by_name("console.press", keys)
        application = self._view.application_keys
        data = b"".join(key_bytes(key, application=application) for key in keys)
        self.send(data, deadline)

    # The shell.

    def login(
        self,
        user: str | None = "root",
        password: str | None = None,
        deadline: Limit = None,
    ) -> None:
        """Wait for the login prompt, log in, and start the shell that :meth:`run` uses.

        A user who is logged in is logged out first. :attr:`dialogue` says what the prompts look like. A
        prompt that the kernel has printed behind is asked for again once the console is quiet.

        Args:
            user: The user; ``None`` if the console shows a shell's prompt without a login.
            password: The password; ``None`` if the guest asks for none.
            deadline: 120 s on a good host by default.

        Raises:
            LoginError: The guest refused the login, the session ended at once, or the guest asks
                for a user or a password that the call lacks.
            WaitTimeoutError: The deadline passed; its hint says what the console shows.
            HarnessError: The console has failed.
        """
        limit = self._scale.limit(deadline, LOGIN_SECONDS)
        with self._waiting("log in on the console", limit):
            self._talk.log_in(user, password, limit)

    @property
    def dialogue(self) -> Dialogue:
        """How the console gives a shell: its prompts, and the key that it waits for."""
        return self._talk.driver.dialogue

    @dialogue.setter
    def dialogue(self, dialogue: Dialogue) -> None:
        self._talk.driver.dialogue = dialogue

    def run(self, command: str, deadline: Limit = None, *, check: bool = False) -> Result:
        """Run a command in the guest's shell and return its result.

        Noise on the line and the output of the command can neither forge nor corrupt the result.
        All commands share one shell: ``cd`` and variables persist. Each command reads from
        ``/dev/null``, and its standard error goes into ``stdout``. The next :meth:`expect` starts
        after the result.

        Args:
            command: A shell command; it may span several lines.
            deadline: 60 s on a good host by default; the command is interrupted when it passes.
            check: Whether an exit status other than 0 is an error.

        Raises:
            CommandError: The exit status is not 0, and ``check`` is set.
            LoginError: No user is logged in, or the session has ended.
            WaitTimeoutError: The deadline passed.
            UsageError: The command contains a NUL or a Ctrl-C byte.
            OutputLostError: The guest had no room for the output.
            HarnessError: The console has failed.
        """
        limit = self._scale.limit(deadline, RUN_SECONDS)
        with self._waiting(f"run on the console: {command[:200]}", limit):
            result = self._talk.run(command, limit)
        return result.check() if check else result

    def export_shell(self, *, wait: bool = True) -> tuple[int, str] | None:
        """Return the state that the console of a fork needs to continue with this shell.

        ``None`` means that there is no shell to continue with.

        Args:
            wait: Whether to wait for another thread's command to end; otherwise there is no shell then.
        """
        return self._talk.export_shell(wait=wait)

    def adopt_shell(self, count: int, up: str) -> None:
        """Continue with the shell of the saved machine: the values of its :meth:`export_shell`."""
        self._talk.adopt_shell(count, up)

    @property
    def logged_in(self) -> bool:
        """Whether :meth:`run` has a shell, as far as the console can see."""
        return self._talk.logged_in

    def leave(self, deadline: Limit = None) -> None:
        """End the shell of :meth:`run`: the console shows a prompt with echo, as before :meth:`login`.

        Args:
            deadline: 10 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed before the prompt appeared.
            HarnessError: The console has failed.
        """
        self._talk.leave(self._scale.limit(deadline, SEND_SECONDS))

    @contextlib.contextmanager
    def interactive(self, deadline: Limit = None) -> Iterator[None]:
        """Give the block a prompt with echo, and restore the shell of :meth:`run` after it.

        Use it for programs that ask questions: type the program's name, then expect its questions.
        The block must end at a prompt. The shell is also restored after an exception, except after
        a wait that timed out, which leaves the console as it is.

        Args:
            deadline: For leaving the shell, 10 s on a good host by default, and again for
                restoring it, 120 s by default.

        Raises:
            HarnessError: As :meth:`leave` and :meth:`login` do.
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
        """Record that the guest was reset: the shell is gone, and earlier login prompts are stale.

        Findings from now on belong to another boot.

        It never blocks, even while another thread waits on the console.
        """
        self._stream.findings.begin_boot()
        self._talk.forget_login()

    # The screen.

    @property
    def screen(self) -> Screen:
        """The current screen."""
        return self._view.screen

    def wait_for_screen(self, pattern: str | re.Pattern[str], deadline: Limit = None) -> Screen:
        """Wait until the screen contains a text, or a match of a compiled regular expression.

        A text is literal here, unlike in :meth:`expect`: ``"a *"`` is a letter, a blank and a star.

        The screen is looked at while the guest draws it. So wait for what the program draws last, or
        for all that the test needs at once, by one expression.

        Args:
            pattern: A plain text, or ``re.compile(...)`` for a regular expression, in which ``^`` and
                ``$`` match at lines with ``re.MULTILINE`` only.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed; its note shows the screen.
            HarnessError: The console has failed.
        """
        limit = self._scale.limit(deadline, EXPECT_SECONDS)
        shown = pattern if isinstance(pattern, str) else pattern.pattern
        with self._waiting(f"wait for {shown!r} on the screen", limit):
            return self._view.wait_for(pattern, limit)

    # Failure.

    def fail(self, error: BaseException) -> None:
        """End every wait, present and later, with ``error``; a leaf of a failure scope.

        The failure is placed at the current end of the output: a wait that earlier output
        satisfies still succeeds. An earlier failure stays, with the exceptions that
        :meth:`Failures.set <harness.console.failures.Failures.set>` lists. It never blocks.
        """
        self._stream.fail(error)

    def check(self) -> None:
        """Raise the failure, if there is one."""
        self._stream.check()

    def clear_failure(self) -> list[Sighting]:
        """Clear the failure, as after a reboot; return the recorded sightings of all watchers.

        The end of the connection cannot be cleared.
        """
        return self._stream.clear_failure()

    def expecting(self, *kinds: type[GuestError]) -> AbstractContextManager[Expected]:
        """Within the block, record errors of these kinds instead of failing: the test causes them.

        ``with console.expecting(PanicError) as panic: ...; panic.wait(30)``
        """
        return self._stream.failures.expecting(*kinds)

    def ignore(self, *kinds: type[GuestError]) -> None:
        """From now on, record errors of these kinds instead of failing."""
        self._stream.failures.ignore(*kinds)

    @property
    def sightings(self) -> list[Sighting]:
        """The sightings of all watchers since the last :meth:`clear_failure`; at most 100."""
        return list(self._stream.failures.sightings)

    # Interactive use.

    def attach(
        self, stdin: int | None = None, stdout: int | None = None, *, beside: bool = False
    ) -> str:
        """Join a person's terminal to the console until the person presses Ctrl-].

        If a user is logged in, the shell of :meth:`run` ends first, so that the person gets a
        prompt; :meth:`login` with ``user=None`` starts it again.

        Args:
            stdin: The descriptor to read keys from; the standard input of this process by default.
            stdout: The descriptor to show output on; the standard output by default.
            beside: Leave the shell, and the turn to type, to the test: it goes on meanwhile.

        Returns:
            ``left`` if the person pressed Ctrl-], ``closed`` if the console ended, ``gone`` if the
            person's terminal ended.
        """
        with contextlib.nullcontext() if beside else self._talk.handed_over(SEND_SECONDS):
            return attach(
                self._stream,
                sys.stdin.fileno() if stdin is None else stdin,
                sys.stdout.fileno() if stdout is None else stdout,
            )


def _listed(patterns: Pattern | Sequence[Pattern]) -> list[Pattern]:
    if isinstance(patterns, (str, bytes, re.Pattern)):
        return [patterns]
    return list(patterns)
