"""The current activities and their durations, shown to a person.

In a terminal each machine has one line that counts its seconds; elsewhere a long step prints a plain
line now and then. One thread wakes when a step begins or ends, or when a line is due.
"""

from __future__ import annotations

import contextlib
import math
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TextIO

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

FIRST_LINE: Final = 5.0
"""Seconds until a step prints its first plain line; the time doubles for each further line."""

WIDTH: Final = 120
"""Characters of a step that are shown."""


@dataclass(slots=True)
class _Activity:
    owner: str
    stack: list[tuple[str, float]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    due: float = field(default_factory=lambda: FIRST_LINE)


class Progress:
    """Shows activities.

    Args:
        stream: The output; a terminal gets live lines.
        live: Whether to draw live lines; by default, whether the stream is a terminal.
    """

    def __init__(self, stream: TextIO, live: bool | None = None) -> None:
        self._terminal = Terminal(file=stream, force_terminal=live, highlight=False, soft_wrap=True)
        self._drawing: Live | None = None
        self._live = self._terminal.is_terminal if live is None else live
        self._activities: dict[str, _Activity] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def doing(self, owner: str, activity: str) -> Iterator[None]:
        """Show ``owner: activity`` while the block runs."""
        self.begin(owner, activity)
        try:
            yield
        finally:
            self.end(owner)

    def begin(self, owner: str, activity: str, seconds: float = math.inf) -> None:
        """Show a step of ``owner``; a step inside another one is shown in its place.

        Args:
            owner: The machine, or whatever else takes the step.
            activity: The step.
            seconds: How long it takes at most: until its deadline.
        """
        with self._changed:
            steps = self._activities.setdefault(owner, _Activity(owner))
            steps.stack.append((activity, time.monotonic() + seconds))
            if len(steps.stack) == 1:
                steps.started = time.monotonic()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._serve, name="harness-progress", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def end(self, owner: str) -> None:
        """End the innermost step of ``owner``."""
        with self._changed:
            activity = self._activities.get(owner)
            if activity is not None:
                activity.stack.pop()
                if not activity.stack:
                    del self._activities[owner]
            self._changed.notify_all()

    def say(self, line: str) -> None:
        """Print one plain line."""
        with self._changed:
            self._terminal.print(Text(line))

    def close(self) -> None:
        """Erase the live lines and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        with self._changed:
            while not self._closed:
                if self._live:
                    self._draw()
                else:
                    self._print_due()
                self._changed.wait(0.5 if self._live else self._next_due())
            if self._drawing is not None:
                self._drawing.stop()
                self._drawing = None

    def _draw(self) -> None:
        now = time.monotonic()
        long = [activity for activity in self._activities.values() if now - activity.started > 1]
        if not long:
            if self._drawing is not None:
                self._drawing.stop()
                self._drawing = None
            return
        if self._drawing is None:
            self._drawing = Live(console=self._terminal, auto_refresh=False, transient=True)
            self._drawing.start()
        text = Text("\n").join(Text(self._line(activity), style="dim") for activity in long)
        self._drawing.update(text, refresh=True)

    def _print_due(self) -> None:
        now = time.monotonic()
        for activity in self._activities.values():
            if now - activity.started >= activity.due:
                activity.due *= 2
                self._terminal.print(Text(self._line(activity)))

    def _next_due(self) -> float | None:
        now = time.monotonic()
        waits = [activity.started + activity.due - now for activity in self._activities.values()]
        # Without an activity, wait until one begins; otherwise until the next line is due.
        return max(0.01, min(waits)) if waits else None

    @staticmethod
    def _line(activity: _Activity) -> str:
        now = time.monotonic()
        step, end = activity.stack[-1]
        # A command may have many lines, and be long.
        step = textwrap.shorten(step, WIDTH, placeholder=" ...")
        left = "" if math.isinf(end) else f", {max(0.0, end - now):.0f} s to its deadline"
        return f"  {activity.owner}: {step} ({now - activity.started:.0f} s{left})"
