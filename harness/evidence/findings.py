"""The findings of one machine, for its console to record and its errors to show."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from harness.evidence.timeline import Finding, Timeline


class Findings:
    """What one machine's kernel said of itself; safe from any thread.

    Args:
        timeline: Gets the findings, and gives them their times.
        machine: The name of the machine.
    """

    def __init__(self, timeline: Timeline, machine: str) -> None:
        self._timeline = timeline
        self._machine = machine
        self._findings: dict[str, Finding] = {}
        self._expected: set[str] = set()
        self._lock = threading.Lock()
        self._before: dict[str, int] = {}
        self._booted = time.monotonic()

    def hear(self, kind: str, what: str, text: str) -> None:
        """Record a complaint, unless complaints of its kind are expected.

        Args:
            kind: The kind.
            what: The kind in words.
            text: The line.
        """
        with self._lock:
            if kind not in self._expected:
                self._findings[kind] = self._timeline.find(kind, what, self._machine, text)

    def expect(self, kind: str) -> None:
        """From now on, take complaints of a kind as provoked: they are no findings.

        A test provokes them, or an option of the machine.
        """
        with self._lock:
            self._expected.add(kind)

    def count(self, kinds: Collection[str]) -> int:
        """Return how many complaints of some kinds there were."""
        with self._lock:
            return sum(finding.count for kind, finding in self._findings.items() if kind in kinds)

    def begin_boot(self) -> None:
        """Record that the guest was reset: what it says from now on belongs to another boot."""
        with self._lock:
            self._before = {kind: finding.count for kind, finding in self._findings.items()}
            self._booted = time.monotonic()

    @property
    def boot_seconds(self) -> float:
        """The seconds since the guest was started or reset."""
        return time.monotonic() - self._booted

    def in_this_boot(self, kinds: Collection[str]) -> list[Finding]:
        """Return the findings of some kinds to which this boot has added."""
        with self._lock:
            return [
                finding
                for kind, finding in self._findings.items()
                if kind in kinds and finding.count > self._before.get(kind, 0)
            ]

    def __str__(self) -> str:
        """Return the findings in words; empty if there are none."""
        with self._lock:
            findings = sorted(self._findings.values(), key=lambda finding: finding.start)
            return ", ".join(map(str, findings))
