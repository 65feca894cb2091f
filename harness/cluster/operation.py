"""An operation of a client on a register, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an operation does."""

    WRITE = "write"
    READ = "read"


class Outcome(StrEnum):
    """What the client knows of an operation's effect.

    A write that was not answered may have been applied, may be applied at any later time (it may wait
    in a log that is replayed when a partition heals), or never. So ``UNKNOWN`` is not ``FAILED``: a
    provider that calls a timeout a failure accuses a correct store.
    """

    OK = "ok"
    """It was acknowledged: a write has been applied, a read has its value."""
    FAILED = "failed"
    """It was not applied, and never will be."""
    UNKNOWN = "unknown"
    """Nothing is known, or not yet."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A write or a read of one key.

    Attributes:
        client: The name of the client.
        key: The register.
        kind: Whether it writes or reads.
        value: The value that was written or returned; ``None`` for a key without a value, and for a read
            that returned nothing.
        start: Seconds on the history's clock, rounded down to a microsecond: before the call.
        end: Seconds on the same clock, rounded up: after the call returned; ``None`` if it did not.
        outcome: What the client knows of its effect.
    """

    client: str
    key: str
    kind: Kind
    value: str | None
    start: float
    end: float | None = None
    outcome: Outcome = Outcome.UNKNOWN

    @property
    def acknowledged(self) -> bool:
        """Whether the cluster said that it has done it."""
        return self.outcome is Outcome.OK

    @property
    def done_by(self) -> float:
        """The time by which it has taken effect for certain; ``inf`` if it may still do so, or never."""
        return self.end if self.acknowledged and self.end is not None else math.inf

    def before(self, other: Operation) -> bool:
        """Return whether it has surely taken effect before the other began."""
        return self.done_by < other.start
