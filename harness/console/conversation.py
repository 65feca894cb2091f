"""The conversation with one guest: how far it has got, and whether a shell answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from harness import deadline as deadlines
from harness.console.expect import Match, search, timeout_error
from harness.console.login import log_in, wait_for_prompt
from harness.console.shell import Driver, Result
from harness.console.stream import Stream
from harness.deadline import Deadline
from harness.errors import WaitTimeoutError


class Conversation:
    """What is said on a console, in turns: each turn begins behind what the last one was answered.

    One thread talks at a time; the others wait for their turn.

    Args:
        stream: The console's stream.

    Attributes:
        driver: Runs commands, once somebody is logged in.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.driver = Driver(stream)
        self._talking = threading.RLock()
        self._position = 0
        self._typed_at = 0
        self._reset_at = 0
        self._prompt: str | None = None

    def search(
        self, searcher: object, what: str, deadline: Deadline, since: int | None, window: int
    ) -> Match:
        """Wait for what a searcher finds, from behind the last match or from the mark ``since``.

        Raises:
            WaitTimeoutError: at the deadline.
            HarnessError: the console's failure.
        """
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

    def skip(self) -> int:
        """Let the next turn see only later output; return a mark."""
        with self._talking:
            self._position = self._typed_at = self._stream.total
            return self._position

    def send(self, raw: bytes, limit: Deadline) -> None:
        """Send bytes; takes no turn.

        Raises:
            WaitTimeoutError: if the guest does not take them until the deadline.
            HarnessError: the console's failure.
        """
        self._stream.check()
        self._typed_at = self._stream.total
        left = self._stream.outbox.send(raw, limit)
        if left:
            self._stream.check()
            raise timeout_error(
                self._stream, f"the guest to take {left} of {len(raw)} bytes of input", limit
            )

    def log_in(
        self, user: str | None, password: str | None, prompt: str | None, limit: Deadline
    ) -> None:
        """Log in and start the driver.

        Raises:
            LoginError: if the login is refused or ends at once.
            WaitTimeoutError: at the deadline.
            HarnessError: the console's failure.
        """
        with self._talking:
            self.driver.active = False
            self._prompt = prompt
            # A prompt waits for its answer, whatever was printed or looked for after it.
            spoken = min(self.driver.position, self._line_start())
            start = max(self._typed_at, spoken, self._reset_at)
            log_in(self._stream, self.driver, start, user, password, prompt, limit)
            self._position = max(self._position, self.driver.position)

    def _line_start(self) -> int:
        """Return where the last line begins, which may be a prompt."""
        end = self._stream.total
        data = self._stream.read(max(0, end - 512), end)
        return end - len(data) + max(data.rfind(b"\n"), data.rfind(b"\r")) + 1

    @property
    def logged_in(self) -> bool:
        """Whether there is a shell, as far as is known."""
        return self.driver.active

    def run(self, command: str, limit: Deadline) -> Result:
        """Run a command in the shell.

        Raises:
            LoginError: if nobody is logged in, or not any more.
            WaitTimeoutError: at the deadline.
            UsageError: if the command has a NUL or a Ctrl-C byte.
            HarnessError: the console's failure.
        """
        with self._talking:
            try:
                return self.driver.run(command, limit)
            finally:
                self._position = max(self._position, self.driver.position)

    def export_shell(self) -> tuple[int, str] | None:
        """Return what a fork needs to go on with this shell; ``None`` without one."""
        with self._talking:
            return self.driver.export()

    def adopt_shell(self, count: int, up: str) -> None:
        """Go on with the shell of the machine that was forked."""
        with self._talking:
            self.driver.adopt(count, up)

    def leave(self, limit: Deadline) -> None:
        """End the driver, if there is one, and wait for the prompt.

        Raises:
            WaitTimeoutError: if it does not come until the deadline.
        """
        with self._talking:
            if self.driver.active:
                mark = self._stream.total
                self.driver.leave(limit)
                found = wait_for_prompt(self._stream, mark, self._prompt, limit)
                self._position = max(self._position, found.end)

    def forget_login(self) -> None:
        """Take note that the guest was reset; takes no turn, as that must not wait for a wait."""
        self._reset_at = self._stream.total
        self.driver.active = False

    @contextlib.contextmanager
    def handed_over(self, seconds: float) -> Iterator[None]:
        """Let somebody else talk in the block, who finds a prompt; the next turn begins behind it.

        Args:
            seconds: How long to wait for the prompt, on a good host.
        """
        with self._talking:
            if self.driver.active and self._stream.failures.current is None:
                # A person can cope without a prompt, and may want to see why there is none.
                with contextlib.suppress(WaitTimeoutError):
                    self.leave(deadlines.after(seconds))
            try:
                yield
            finally:
                self._position = self._stream.total
                self._typed_at = self._line_start()
