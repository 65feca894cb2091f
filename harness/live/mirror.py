"""Prints the consoles of machines line by line, for ``--live``.

A thread a machine sleeps until there is output. It reads the log, so a slow terminal stops no guest.
What a guest prints acts on no terminal: escape sequences and control characters are removed, and other
characters that do not print, such as those that turn the direction of text, are replaced.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from harness.console.outbox import Signal
from harness.console.text import plain
from harness.machine import Machine

LONGEST: Final = 1000
"""Characters of a line that are printed."""

BEHIND: Final = 1 << 20
"""Bytes that the terminal may be behind the guest; more are left out, and said to be."""


def printable(text: str) -> str:
    """Return a text without characters that act on a terminal or do not print."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class Lines:
    """Cuts output into printable lines.

    Args:
        say: Called with each line.
        name: The prefix of each line.
    """

    def __init__(self, say: Callable[[str], None], name: str) -> None:
        self._say = say
        self._name = name
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Print the whole lines of what has come."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > 8 * LONGEST:  # a guest need not print a newline ever
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._print(line)

    def end(self) -> None:
        """Print what is left: a prompt has no newline."""
        if self._rest:
            self._print(self._rest)
            self._rest = b""

    def note(self, text: str) -> None:
        """Print a remark of Harness'."""
        self.end()
        self._say(f"{self._name}| [harness: {text}]")

    def _print(self, line: bytes) -> None:
        # A sequence that moves the cursor begins another line.
        for part in plain(line).split("\n"):
            text = printable(part.replace("\t", " ").rstrip())
            if text:
                self._say(f"{self._name}| {text[:LONGEST]}")


def start(machine: Machine[Any], say: Callable[[str], None]) -> threading.Thread:
    """Print the console of a machine until it ends.

    Args:
        machine: The machine.
        say: Prints a line, from any thread.

    Returns:
        The thread, which ends soon after the console.
    """
    console = machine.console
    changed = Signal()
    console.listen(changed)
    thread = threading.Thread(
        target=_follow,
        args=(console, changed, Lines(say, machine.name)),
        name=f"live-{machine.name}",
        daemon=True,
    )
    thread.start()
    return thread


def _follow(console: Any, changed: Signal, lines: Lines) -> None:
    # A descriptor of its own: the console closes that of the log at its end.
    log: Path = console.log
    descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    at: int = console.log_start
    poller = select.poll()
    poller.register(changed, select.POLLIN)
    try:
        while True:
            over = console.ended
            end = os.fstat(descriptor).st_size
            if end - at > BEHIND:
                lines.note(f"{end - at - BEHIND} bytes are in {log} alone")
                at = end - BEHIND
            while at < end and (data := os.pread(descriptor, min(end - at, 1 << 16), at)):
                lines.feed(data)
                at += len(data)
            if over:
                lines.end()
                return
            poller.poll()
            changed.clear()
    finally:
        console.unlisten(changed)
        changed.close()
        os.close(descriptor)
