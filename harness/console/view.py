"""What a person who looks at the console would see, made when somebody looks."""

from __future__ import annotations

import re
import threading

from harness.console.expect import timeout_error
from harness.console.stream import Stream
from harness.console.terminal import BACKLOG, PIECE, Screen, Terminal
from harness.deadline import Deadline


class View:
    """A terminal in front of a stream; safe from any thread.

    Args:
        stream: The console's stream.
        size: Columns and rows of the terminal.
    """

    def __init__(self, stream: Stream, size: tuple[int, int]) -> None:
        self._stream = stream
        self._size = size
        self._looking = threading.Lock()
        self._terminal: Terminal | None = None
        self._shown = 0

    @property
    def screen(self) -> Screen:
        """What a person would see now."""
        with self._looking:
            return self._catch_up(self._stream.total).snapshot()

    @property
    def application_keys(self) -> bool:
        """Whether the guest switched the cursor keys to application mode (DECCKM)."""
        with self._looking:
            return self._catch_up(self._stream.total).application_keys

    def wait_for(self, wanted: str | re.Pattern[str], limit: Deadline) -> Screen:
        """Wait until a text is on the screen, or what fits a regular expression.

        Raises:
            WaitTimeoutError: at the deadline; it shows the screen.
            HarnessError: the console's failure.
        """
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
