"""A machine's power button, plug and reset line, and the waits for the guest's power-offs and resets."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Final

from harness.deadline import Deadline
from harness.errors import GuestIdleError, GuestStoppedError, HarnessError
from harness.machine.parts import Parts
from harness.machine.watchdog import HangWatchdog

_ONE_RESET: Final = 1.0
"""Seconds; no guest boots and restarts within them, firmware alone takes longer."""


class Power:
    """The power of one running machine; :class:`~harness.machine.Machine` documents the words.

    Args:
        parts: The machine's parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.watchdog = HangWatchdog(
            parts.process.activity, parts.console.silent_for, self._report_hang
        )

    def wait_for_shutdown(self, limit: Deadline) -> None:
        """Wait until the guest has powered off by itself, then stop the machine."""
        parts = self._parts
        parts.ending.intend()
        with parts.timeline.step("wait for power-off", machine=parts.name, limit=limit.seconds):
            parts.wait_for_event("the guest to power off", ("SHUTDOWN",), limit, since=0)
        parts.stop()

    def shutdown(self, limit: Deadline) -> None:
        """Press the power button, wait until the guest has powered off, then stop the machine."""
        parts = self._parts
        parts.ending.intend()
        with parts.timeline.step("shut down by ACPI", machine=parts.name, limit=limit.seconds):
            mark = parts.qmp.mark()
            parts.qmp.execute("system_powerdown")
            parts.wait_for_event("the guest to power off", ("SHUTDOWN",), limit, since=mark)
        parts.stop()

    def wait_for_reset(self, limit: Deadline, *, since: int) -> None:
        """Wait until the guest resets, or return if it has since a mark."""
        parts = self._parts
        with parts.timeline.step("wait for reset", machine=parts.name, limit=limit.seconds):
            parts.wait_for_event("the guest to reset", ("RESET",), limit, since=since)

    @contextlib.contextmanager
    def restarting_at_most(self, times: int, *, since: int | None) -> Iterator[None]:
        """Fail the machine in the block as soon as it has been reset more often than ``times``."""
        parts = self._parts
        start = parts.qmp.mark() if since is None else since

        def too_often() -> GuestStoppedError | None:
            if self.restarts(start) <= times:
                return None
            return GuestStoppedError(
                f"machine {parts.name} was restarted before it came up"
                if times == 0
                else f"machine {parts.name} was restarted more often than {times} times",
                evidence=f"{parts.log}\n{parts.console.last_output()}",
            )

        def check() -> None:
            if (error := too_often()) is not None:
                raise error

        with parts.ending.checking(too_often):
            check()
            yield
        check()

    def restarts(self, since: int = 0) -> int:
        """Return how often the guest was reset after a mark, since the start by default.

        A reset right after another counts as one with it: SeaBIOS resets the machine once more when it
        detects that it has run before (its ``src/romlayout.S``, ``entry_post``, and ``src/resume.c``).
        """
        qmp = self._parts.qmp
        times = [event.seconds for event in qmp.seen(("RESET",))]
        after = len(qmp.seen(("RESET",), since))
        pairs = list(zip([-math.inf, *times], times, strict=False))
        return sum(now - before > _ONE_RESET for before, now in pairs[len(times) - after :])

    def _report_hang(self, seconds: float) -> None:
        """Fail the machine: its guest was silent and idle for ``seconds`` while it came up."""
        parts = self._parts
        registers = parts.evidence / "cpus.txt"
        try:
            if not parts.qmp.execute("query-status")["running"]:
                return  # The test has paused it.
            registers.write_text(parts.qmp.human("info registers -a"))
        except (HarnessError, OSError):
            return  # It has just ended, and that ends the waits.
        parts.ending.fail(
            GuestIdleError(
                f"{parts.name} to come up, and it did nothing",
                seconds,
                last_output=parts.console.last_output(),
                silent=parts.console.silent_for(),
                evidence=str(parts.log),
                hint=f"the registers of its CPUs are in {registers}; does it wait for a key? If not,"
                " run it again: emulation loses an interrupt now and then",
            )
        )
