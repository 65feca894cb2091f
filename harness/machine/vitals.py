"""The vital signs of a guest, as they show from outside, for the hang watchdog.

What the guest prints is read from the console's log, what it reads from QEMU's statistics of its
disks, what it computes from the CPU time of QEMU's threads. A guest that prints is not asked for more.
"""

from __future__ import annotations

import re
from typing import Final

from harness.console.complaints import STALLS, is_complaint
from harness.console.text import plain
from harness.errors import HarnessError
from harness.machine.parts import Parts
from harness.machine.watchdog import Look

_TAIL: Final = 64 * 1024
"""Bytes of new output that a look examines at most: its end."""

_REMEMBERED: Final = 4096
"""Lines that are remembered. A boot of skiff prints some 400."""

_WRITTEN: Final = 1024 * 1024
"""Bytes between two looks from which writing is progress. A system in which nothing else happens
writes its journal; one that is installed, or makes a file system, writes more."""

_ANSWER: Final = 5.0
"""Seconds on a good host for QEMU's answer: the end of the wait waits for it."""

_MUTILATED: Final = 10
"""One of so many lines may be mutilated (seen: 3 of 150, beside a load of 17)."""

_WORD: Final = re.compile(r"\w*\d\w*|[^\W\d_]+")


def essence(line: str) -> str:
    """Return what is new about a line when it is printed again: its words, without numbers.

    ``[  *** ] A start job is running for /dev/vda2 (12s / 1min 30s)`` says the same every second.
    """
    return " ".join(word for word in _WORD.findall(line) if word.isalpha())[:200]


class Memory:
    """The lines that a guest has printed, by their essence; bounded."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def news(self, output: str) -> bool:
        """Return whether the output has lines that are new and no complaints; remember its lines."""
        new = complaints = 0
        for line in plain(output.encode()).split("\n"):
            words = essence(line)
            if not words or words in self._seen:
                continue
            if is_complaint(line.encode()):
                complaints += 1
                continue
            new += 1
            self._seen[words] = None
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        # On a busy host a serial port loses a byte now and then: a stack trace of a hundred lines has
        # one or two that nothing recognizes.
        return new > complaints // _MUTILATED


class Vitals:
    """Looks at one guest; for one thread.

    Args:
        parts: The machine's parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._offset = parts.console.mark()
        self._memory = Memory()
        self._resets = len(parts.qmp.seen(("RESET",)))
        self._stalls = parts.console.findings.count(STALLS)
        self._activity = parts.process.activity()
        self._transferred: tuple[int, int] | None = None

    def look(self) -> Look:
        """Return what the guest has done since the last look, or since the beginning."""
        parts = self._parts
        before, self._activity = self._activity, parts.process.activity()
        stalls, self._stalls = self._stalls, parts.console.findings.count(STALLS)
        return Look(
            advanced=self._restarted() or self._printed() or self._transfers(),
            stalled=self._stalls > stalls,
            cpu=self._activity.cpu - before.cpu,
            starved=self._activity.starved_since(before),
        )

    def _restarted(self) -> bool:
        before, self._resets = self._resets, len(self._parts.qmp.seen(("RESET",)))
        if self._resets == before:
            return False
        # A new boot prints the lines of the last one again.
        self._memory = Memory()
        return True

    def _printed(self) -> bool:
        console = self._parts.console
        start, self._offset = self._offset, console.mark()
        if self._offset == start:
            return False
        try:
            return self._memory.news(console.since(max(start, self._offset - _TAIL)))
        except HarnessError:
            return True  # The log is lost; the console reports that.

    def _transfers(self) -> bool:
        """Return whether the disks were used since the last call; after the first, say no.

        ``query-blockstats`` is in QEMU's QMP reference.
        """
        try:
            limit = self._parts.scale.after(_ANSWER)
            entries = self._parts.qmp.execute("query-blockstats", deadline=limit)
        except HarnessError:
            return False  # QEMU is too busy to answer, or has ended.
        stats = [entry["stats"] for entry in entries]
        now = sum(int(s["rd_bytes"]) for s in stats), sum(int(s["wr_bytes"]) for s in stats)
        before, self._transferred = self._transferred or now, now
        return now[0] > before[0] or now[1] >= before[1] + _WRITTEN
