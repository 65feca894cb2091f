"""Deadlines on the monotonic clock, stretched to what this host can do.

Every wait of Harness takes a deadline. A caller writes what a good host under KVM needs; the
*scale* stretches it: emulation is slower by an order of magnitude, and a loaded host by more. A
deadline is made once and handed down, so that the parts of a wait share one budget.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

TCG_SCALE: Final = 8.0
"""Emulation against KVM: the boot of skiff takes about 8 s under KVM and 70 s under TCG."""

_LONGEST_POLL: Final = 2.0**31 - 1

_scale = 1.0


def set_scale(scale: float) -> None:
    """Set what all later :func:`after` calls multiply their seconds by.

    Raises:
        ValueError: if ``scale`` is not a positive finite number.
    """
    global _scale
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"a scale is a positive number, not {scale!r}")
    _scale = scale


def scale() -> float:
    """Return the scale in force."""
    return _scale


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock.

    Attributes:
        seconds: The length it was made with, after scaling; for messages.
        at: The point, on the clock of :func:`time.monotonic`; ``inf`` for never.
    """

    seconds: float
    at: float

    def remaining(self) -> float:
        """Return the seconds left, never below zero; ``inf`` for never."""
        return max(0.0, self.at - time.monotonic())

    def timeout(self) -> float | None:
        """Return the seconds left as standard library waits take them: ``None`` for never."""
        return None if math.isinf(self.at) else self.remaining()

    def poll_timeout(self) -> float | None:
        """Return the milliseconds left as ``poll(2)`` takes them: an int, so 24 days at most."""
        return None if math.isinf(self.at) else min(self.remaining() * 1000, _LONGEST_POLL)

    @property
    def expired(self) -> bool:
        """Whether the point has passed."""
        return time.monotonic() >= self.at

    @property
    def elapsed(self) -> float:
        """The seconds since it was made."""
        return self.seconds - (self.at - time.monotonic())


NEVER: Final = Deadline(math.inf, math.inf)


def after(seconds: float, *, scaled: bool = True) -> Deadline:
    """Return the deadline ``seconds`` from now.

    Args:
        seconds: Seconds on a good host with KVM.
        scaled: False for what does not run in a guest: the host's own time.
    """
    length = seconds * _scale if scaled else seconds
    return Deadline(length, time.monotonic() + length)


def of(limit: Deadline | float | None, default: float) -> Deadline:
    """Return ``limit`` as a deadline: as it is, from seconds, or from the default seconds."""
    if isinstance(limit, Deadline):
        return limit
    return after(default if limit is None else limit)
