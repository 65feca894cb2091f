"""Waits until a guest rests: each fork repeats the work that is left when its machine is saved.

A boot goes on behind the login prompt. A fork of skiff answered after 0.6 s if the machine was saved at
once, and after 0.37 s if it was saved three seconds later. No event marks the beginning of the rest, so
the CPU time of QEMU is sampled.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from harness.deadline import UNSCALED, Deadline

if TYPE_CHECKING:
    from harness.qemu.process import Activity, OwnedProcess

LOOK: Final = 0.5
"""Seconds between two looks. Timers of a guest at rest run more often than that."""

BUSY: Final = 0.25
"""CPU seconds a second from which a guest is busy. An idle member of a cluster takes 0.16 under TCG."""


def is_busy(before: Activity, now: Activity, seconds: float) -> bool:
    """Return whether a guest was busy for the seconds between two activities of its QEMU.

    The time for which the host had no CPU for QEMU does not count.
    """
    counted = max(0.0, seconds - now.starved_since(before))
    return now.cpu - before.cpu > BUSY * counted


def wait(process: OwnedProcess, limit: Deadline) -> bool:
    """Wait until a guest rests or its QEMU has ended; return whether it did before the deadline."""
    before, since = process.activity(), time.monotonic()

    def rests(seconds: float | None) -> bool:
        nonlocal before, since
        if seconds == 0:
            return False
        if process.wait(UNSCALED.after(LOOK if seconds is None else min(LOOK, seconds))):
            return True
        earlier, before = before, process.activity()
        start, since = since, time.monotonic()
        return not is_busy(earlier, before, since - start)

    return limit.wait(rests)
