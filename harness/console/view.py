"""The screen of a console, which is computed when it is requested."""

from __future__ import annotations

import re
import threading

from harness.console.expect import timeout_error
from harness.console.stream import Stream
from harness.console.terminal import BACKLOG, PIECE, Screen, Terminal
from harness.deadline import Deadline


class View:
    """The terminal that shows the output of a stream; safe from any thread.

    Args:
        stream: The stream of the console.
        size: The columns and rows of the terminal.
    """

    def __init__(self, stream: Stream, size: tuple[int, int]) -> None:
        self._stream = stream
        self._size = size
        self._looking = threading.Lock()
        self._terminal: Terminal | None = None
        self._shown = 0

    @property
    def screen(self) -> Screen:
        """The current screen."""
        with self._looking:
            return self._catch_up(self._stream.total).snapshot()

    @property
    def application_keys(self) -> bool:
        """Whether the guest switched the cursor keys to application mode (DECCKM)."""
        with self._looking:
            return self._catch_up(self._stream.total).application_keys

    def wait_for(self, pattern: str | re.Pattern[str], limit: Deadline) -> Screen:
        """Wait until the screen contains a text or a match of a compiled regular expression.

        Raises:
            WaitTimeoutError: The deadline passed; its note shows the screen.
            HarnessError: The console has failed.
        """
        while True:
            with self._looking:
                end = self._stream.readable
                screen = self._look(end, pattern)
            if screen is not None:
                return screen
            if self._stream.wait_past(end, limit.timeout()) <= end and limit.expired:
                shown = pattern if isinstance(pattern, str) else pattern.pattern
                hint = pattern_hint(pattern, self.screen)
                error = timeout_error(self._stream, f"{shown!r} on the screen", limit, hint)
                error.add_note(f"on the screen:\n{self.screen.text}")
                raise error

    def _look(self, end: int, pattern: str | re.Pattern[str]) -> Screen | None:
        """Interpret the output up to an offset; return the first screen that matches."""
        if end - self._shown > BACKLOG:
            self._catch_up(end - BACKLOG)
        while True:
            terminal = self._catch_up(min(end, max(self._shown, 0) + PIECE))
            screen = terminal.snapshot()
            if screen.contains(pattern):
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


def pattern_hint(pattern: str | re.Pattern[str], screen: Screen) -> str:
    """Return what may be wrong with a pattern that was not on the screen; often empty."""
    if isinstance(pattern, re.Pattern):
        if not pattern.flags & re.MULTILINE and re.search(r"[$^]", pattern.pattern):
            lines = re.compile(pattern.pattern, pattern.flags | re.MULTILINE)
            if screen.contains(lines):
                return "it matches with re.MULTILINE, with which ^ and $ stand at each line"
        return ""
    if re.search(r"[\\*+?\[\](){}|^$.]", pattern):
        try:
            matches = screen.contains(re.compile(pattern, re.MULTILINE))
        except re.error:
            return ""
        if matches:
            return (
                "a text is literal here; as a regular expression it would match:"
                f" re.compile({pattern!r})"
            )
    return ""
