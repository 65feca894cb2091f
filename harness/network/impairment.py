"""What a link does to the frames that it carries, and which of them it does it to.

A fault is repeatable: what happens to a frame depends on the seed, on the link and its direction, and on
the frame's number among those that the link carried while it was impaired. It depends neither on time
nor on other links. So the same seed meets the same frames again, however busy the host is.
"""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, Final, Self

from harness.errors import UsageError

LONGEST_QUEUE: Final = 65536
"""Frames that a link may hold; of 9000 bytes each they take 600 MB."""

LONGEST_DELAY: Final = 3600.0
"""Seconds."""

_PROBABILITIES: Final = ("loss", "duplicate", "reorder", "corrupt")
_TIMES: Final = ("delay", "jitter")
_ONE: Final = 1 << 64


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise UsageError(f"{name} is a number, not {value!r}")
    if math.isinf(value):
        raise UsageError(f"{name} is a finite number, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Impairment:
    """What one direction of a link does to its frames; the default does nothing.

    All probabilities are from 0 to 1, and each frame is judged on its own.

    Attributes:
        loss: Probability that a frame is lost.
        delay: Seconds that each frame takes.
        jitter: The delay varies by at most these seconds to either side, evenly. Frames keep
            their order.
        duplicate: Probability that a frame arrives twice.
        reorder: Probability that a frame lets the next one pass. If none follows within
            :data:`harness.network.wire.REORDER_WAIT`, it goes on alone. The next frame is not
            reordered, and a frame that is reordered is not duplicated.
        corrupt: Probability that one bit of a frame's payload is flipped.
        rate: Bits per second, of whole frames without preamble and checksum; ``None`` for no limit.
        queue: Frames that the link holds at most, in its delay and before its rate; a further one is
            dropped. Which frames these are depends on time.
        cut: Whether no frame passes. A frame that is cut off is not counted: the faults of those that
            pass are the same with a cut between them.

    Raises:
        UsageError: A value is out of range, or no number.
    """

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    rate: float | None = None
    queue: int = 1000
    cut: bool = False

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            value = _number(name, getattr(self, name))
            if not 0 <= value <= 1:
                raise UsageError(
                    f"{name} is a probability from 0 to 1, not {value:g} ({value * 100:g} %)",
                    hint=f"{name}=0.01 is one frame in a hundred",
                )
        for name in _TIMES:
            value = _number(name, getattr(self, name))
            if not 0 <= value <= LONGEST_DELAY:
                raise UsageError(
                    f"{name} is 0 to {LONGEST_DELAY:g} seconds, not {value:g}",
                    hint=f"{name}=0.02 is 20 ms",
                )
        if self.jitter > self.delay:
            raise UsageError(
                f"jitter varies the delay to either side, so it is at most the delay of"
                f" {self.delay:g} s, not {self.jitter:g} s"
            )
        if self.rate is not None and _number("rate", self.rate) <= 0:
            raise UsageError(
                f"rate is a positive number of bits per second, not {self.rate:g}",
                hint="cut=True is a link that carries nothing",
            )
        if isinstance(self.queue, bool) or not isinstance(self.queue, int):
            raise UsageError(f"queue is a number of frames, not {self.queue!r}")
        if not 1 <= self.queue <= LONGEST_QUEUE:
            raise UsageError(f"queue is 1 to {LONGEST_QUEUE} frames, not {self.queue}")
        if not isinstance(self.cut, bool):
            raise UsageError(f"cut is True or False, not {self.cut!r}")

    def __bool__(self) -> bool:
        return self != PERFECT

    def dump(self) -> dict[str, Any]:
        """Return the values that differ from the default, as plain JSON."""
        return {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Return what :meth:`dump` made plain JSON of."""
        return cls(**values)


_DEFAULTS: Final = {field.name: field.default for field in fields(Impairment)}
PERFECT: Final = Impairment()
"""A link that does nothing to its frames."""


@dataclass(frozen=True, slots=True)
class Flapping:
    """A link that goes down and comes up again, by time, until it is healed. It begins up.

    Attributes:
        up: Seconds that it is up.
        down: Seconds that it is down.

    Raises:
        UsageError: A value is out of range, or no number.
    """

    up: float
    down: float

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            value = _number(name, getattr(self, name))
            if not 0 < value <= LONGEST_DELAY:
                raise UsageError(
                    f"a flapping link is {name} for more than 0 and at most {LONGEST_DELAY:g} seconds,"
                    f" not {value:g}"
                )

    def is_down(self, elapsed: float) -> bool:
        """Return whether it is down, so many seconds after it began to flap."""
        return elapsed % (self.up + self.down) >= self.up


@dataclass(slots=True)
class Fate:
    """What happens to one frame.

    Attributes:
        lost: It is dropped.
        copies: How often it arrives, if it is not lost.
        reordered: It lets the next frame pass.
        corrupted: One bit of it is flipped.
        bit: A number that chooses the bit.
        drift: From -1 to 1: the part of the jitter that is added to its delay.
    """

    lost: bool
    copies: int
    reordered: bool
    corrupted: bool
    bit: int
    drift: float


class Dice:
    """Decides the fate of each frame of one direction of a link.

    The numbers come from BLAKE2b (RFC 7693) of the seed, the link and the frame's number. They are the
    same with every version of Python and on every host. A frame that a loss of 1 % drops is dropped by
    a loss of 5 %, too.

    Args:
        seed: The seed of the segment.
        link: The name of the link and its direction.
    """

    def __init__(self, seed: int, link: str) -> None:
        self._hash = blake2b(f"{seed}/{link}".encode(), digest_size=48)

    def _numbers(self, index: int) -> tuple[int, ...]:
        """Return six numbers below 2^64 for a frame."""
        hash_ = self._hash.copy()
        hash_.update(index.to_bytes(8, "big"))
        return _NUMBERS.unpack(hash_.digest())

    def fate(self, index: int, impairment: Impairment) -> Fate:
        """Return the fate of a frame.

        Args:
            index: Its number on this link, from 0.
            impairment: What the link does.
        """
        loss, duplicate, reorder, corrupt, bit, drift = self._numbers(index)
        return Fate(
            lost=loss < impairment.loss * _ONE,
            copies=2 if duplicate < impairment.duplicate * _ONE else 1,
            reordered=reorder < impairment.reorder * _ONE,
            corrupted=corrupt < impairment.corrupt * _ONE,
            bit=bit,
            drift=drift / (_ONE / 2) - 1,
        )


_NUMBERS: Final = struct.Struct(">6Q")
