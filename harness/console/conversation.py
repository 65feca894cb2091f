"""The conversation with one guest: the position of the next search, and the shell of ``run``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from harness.console.expect import WINDOW, Match, search, timeout_error
from harness.console.login import log_in, wait_for_prompt
from harness.console.pace import type_paced
from harness.console.shell import Driver
from harness.console.stream import Stream
from harness.deadline import Deadline
from harness.errors import StoreError, WaitTimeoutError
from harness.result import Result


class Conversation:
    """A sequence of turns on a console; each turn starts where the last one ended.

    A turn holds a lock, so turns of several threads run one after the other.

    Args:
        stream: The stream of the console.

    Attributes:
        driver: Runs commands after a login.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.driver = Driver(stream)
        self._talking = threading.RLock()
        self._position = 0
        self._typed_at = 0
        self._reset_at = 0
        self._at_shell = False

    def search(
        self,
        searcher: object,
        description: str,
        deadline: Deadline,
        since: int | None,
        window: int,
        hint: Callable[[bytes], str],
    ) -> Match:
        """Wait for a match of a searcher, from the end of the last match or from a mark.

        Args:
            searcher: A searcher of pexpect.
            description: The patterns, for the message.
            deadline: When to give up.
            since: The mark; ``None`` searches from the end of the last match.
            window: The length in bytes up to which a match is certain to be found.
            hint: Returns what may be wrong with the patterns, from the end of the output in vain.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The console has failed, and no earlier output matches.
        """
        with self._talking:
            start = self._position if since is None else since
            match = search(
                self._stream,
                searcher,
                start,
                deadline,
                lambda: timeout_error(
                    self._stream, description, deadline, hint(self._searched(start))
                ),
                window=window,
            )
            self._position = max(self._position, match.end)
            return match

    def _searched(self, start: int) -> bytes:
        end = self._stream.total
        # The message of the timeout must not be lost to a log that is lost as well.
        with contextlib.suppress(StoreError):
            return self._stream.read(max(start, end - WINDOW), end)
        return b""

    def skip(self) -> int:
        """Make the next turn ignore all output so far; return a mark."""
        with self._talking:
            self._position = self._typed_at = self._stream.total
            return self._position

    def send(self, raw: bytes, limit: Deadline, *, paced: bool = False) -> None:
        """Send bytes, without a turn.

        Args:
            raw: The bytes.
            limit: When to give up.
            paced: Whether to wait for the echo of each piece; see :mod:`harness.console.pace`.

        Raises:
            WaitTimeoutError: The deadline passed before the guest accepted or echoed all bytes.
            HarnessError: The console has failed.
        """
        self._stream.check()
        self._typed_at = self._stream.total
        stream = self._stream
        left = type_paced(stream, raw, limit) if paced else stream.outbox.send(raw, limit)
        if left:
            self._stream.check()
            raise timeout_error(
                self._stream, f"the guest to take {left} of {len(raw)} bytes of input", limit
            )

    def log_in(self, user: str | None, password: str | None, limit: Deadline) -> None:
        """Log in and start the driver. A user who is logged in is logged out first.

        Raises:
            LoginError: The guest refused the login, or the session ended at once.
            WaitTimeoutError: The deadline passed.
            HarnessError: The console has failed.
        """
        with self._talking:
            # Output since the last command may be that of a guest that has ended the session.
            since = self._stream.read(self.driver.position, self._stream.total)
            if self.driver.active and not since.strip():
                self._log_out(user, limit)
            self.driver.active = False
            # A login prompt stays valid until it is answered, even if the kernel printed after it
            # or a search has gone past it.
            unanswered = min(self.driver.position, self._line_start())
            answered = max(self._typed_at, self.driver.answered_at)
            start = max(answered, unanswered, self._reset_at)
            at_shell, self._at_shell = self._at_shell, False
            log_in(self._stream, self.driver, start, user, password, limit, at_shell=at_shell)
            self._position = max(self._position, self.driver.position)

    def _log_out(self, user: str | None, limit: Deadline) -> None:
        """End the shell, whose prompt would never come; a console without users keeps it."""
        self.leave(limit)
        if user is not None:
            self._at_shell = False
            self.send(b"exit\n", limit)

    def _line_start(self) -> int:
        """Return the offset of the last line, which may be a prompt."""
        end = self._stream.total
        data = self._stream.read(max(0, end - 512), end)
        return end - len(data) + max(data.rfind(b"\n"), data.rfind(b"\r")) + 1

    @property
    def logged_in(self) -> bool:
        """Whether there is a shell, as far as the console can see."""
        return self.driver.active

    def run(self, command: str, limit: Deadline) -> Result:
        """Run a command in the shell.

        Raises:
            LoginError: No user is logged in, or the session has ended.
            WaitTimeoutError: The deadline passed.
            UsageError: The command contains a NUL or a Ctrl-C byte.
            OutputLostError: The guest had no room for the output.
            HarnessError: The console has failed.
        """
        with self._talking:
            try:
                return self.driver.run(command, limit)
            finally:
                self._position = max(self._position, self.driver.position)

    def export_shell(self, *, wait: bool = True) -> tuple[int, str] | None:
        """Return the state that a fork needs to continue with this shell; ``None`` without one.

        Args:
            wait: Whether to wait for another thread's command to end; otherwise there is no shell then.
        """
        if not self._talking.acquire(blocking=wait):
            return None
        try:
            return self.driver.export()
        finally:
            self._talking.release()

    def adopt_shell(self, count: int, up: str) -> None:
        """Continue with the shell of the machine that this one was forked from."""
        with self._talking:
            self.driver.adopt(count, up)

    def leave(self, limit: Deadline) -> None:
        """End the driver, if it runs, and wait for the prompt.

        Raises:
            WaitTimeoutError: The deadline passed before the prompt appeared.
            HarnessError: The console has failed.
        """
        with self._talking:
            if self.driver.active:
                mark = self._stream.total
                self.driver.leave(limit)
                end = wait_for_prompt(self._stream, self.driver, mark, limit)
                self._position = max(self._position, end)
                self._at_shell = True
            self._stream.suspects.forget()

    def forget_login(self) -> None:
        """Record that the guest was reset.

        It takes no turn: the caller must not block while another thread waits on the console.
        """
        self._reset_at = self._stream.total
        self._at_shell = False
        self.driver.active = False
        self._stream.suspects.reset()

    @contextlib.contextmanager
    def handed_over(self, seconds: float) -> Iterator[None]:
        """Leave the console to a person in the block, at a prompt; the next turn starts after it.

        Args:
            seconds: How long to wait for the prompt, in seconds on a good host.
        """
        with self._talking:
            if self.driver.active and self._stream.failures.current is None:
                # A person can work without a prompt, and may want to see why there is none.
                with contextlib.suppress(WaitTimeoutError):
                    self.leave(self._stream.scale.after(seconds))
            try:
                yield
            finally:
                self._position = self._stream.total
                self._typed_at = self._line_start()
