"""Deadlines on the monotonic clock, stretched to what one guest needs.

Every wait of Harness takes a deadline. A caller writes the seconds that a good host under KVM needs; the
*scale* of a machine stretches them: emulation is slower by an order of magnitude, and a loaded host by
more. A deadline is created once and handed down, so that the parts of a wait share one budget.

In every public word, ``deadline`` is the last argument that may be given by position; a word that takes
any number of arguments takes it by name alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.errors import UsageError

TCG_SCALE: Final = 8.0
"""Emulation against KVM: the boot of skiff takes about 8 s under KVM and 70 s under TCG."""

_LONGEST_POLL: Final = 2.0**31 - 1


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock.

    Attributes:
        seconds: Its length when it was created, after scaling; for messages.
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
        """The seconds since it was created."""
        return self.seconds - (self.at - time.monotonic())


NEVER: Final = Deadline(math.inf, math.inf)

Limit = Deadline | float | None
"""A deadline; or seconds on a good host, which a scale stretches; or ``None`` for the default."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many times as long one guest takes as the same guest on a good host under KVM.

    Each machine has its own: an emulated arm64 guest is slower than the x86-64 one beside it.

    Attributes:
        factor: The factor; 1.0 on a good host.

    Raises:
        ValueError: The factor is not a positive finite number.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"a scale is a positive finite number, not {self.factor!r}")

    def after(self, seconds: float) -> Deadline:
        """Return the deadline that is ``seconds`` of a good host from now."""
        length = seconds * self.factor
        return Deadline(length, time.monotonic() + length)

    def limit(self, limit: Limit, default: float) -> Deadline:
        """Return ``limit`` as a deadline: unchanged, or from seconds, or from the default seconds."""
        if isinstance(limit, Deadline):
            return limit
        return self.after(default if limit is None else limit)


def by_name(word: str, texts: Sequence[object]) -> None:
    """Check the arguments of a word that takes any number of texts, and a deadline by name.

    Args:
        word: The word, for the message.
        texts: Its arguments.

    Raises:
        UsageError: One of them is no text: a deadline by position.
    """
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(
                f"{word} takes texts, and not {text!r}",
                hint="this word takes any number of texts, so its deadline needs its name: deadline=30",
            )


UNSCALED: Final = Scale()
"""The scale of the host's own work."""
