"""Names the moments at which power can fail, and spreads a sample over them.

A *place* is a number of completed entries of the log. At each place power can fail in four kinds of
ways, which differ in the fate of the pending writes, which no flush has followed:

=============  ==================================================================================
``clean``      all of them are on the disk
``flushed``    none of them is on the disk
``lost``       some of them are on the disk, each whole
``reordered``  some of them are on the disk, whole or in part: a write of many sectors may be torn,
               and a later write may be there although an earlier one is lost
=============  ==================================================================================

A disk writes a sector whole or not at all, and never overwrites a newer version with an older one.
So whichever order a disk chose, each sector holds one of its versions since the last flush, or the one
before. ``reordered`` draws from these versions and needs no order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from harness.errors import UsageError
from harness.qemu.writelog import LogEntry, WriteLog

_NAME: Final = re.compile(r"w(\d+)-(clean|flushed|lost|reordered)(?:-s(\d+))?")


class Kind(StrEnum):
    """The fate of the pending writes, which no flush has followed."""

    CLEAN = "clean"
    FLUSHED = "flushed"
    LOST = "lost"
    REORDERED = "reordered"

    @property
    def drawn(self) -> bool:
        """Whether a seed decides which writes survive."""
        return self in (Kind.LOST, Kind.REORDERED)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A crash point: a place, and the way in which power fails there.

    The name is the whole identity: the same name on the same recording is the same disk.

    Attributes:
        place: The number of completed entries of the log.
        kind: The fate of the pending writes.
        seed: The seed of the random choices, for the kinds that make any.
    """

    place: int
    kind: Kind
    seed: int = 0

    @property
    def name(self) -> str:
        """The name, such as ``w01234-lost-s7``."""
        seed = f"-s{self.seed}" if self.kind.drawn else ""
        return f"w{self.place:05d}-{self.kind}{seed}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the point with a name.

        Raises:
            UsageError: The text is not the name of a point.
        """
        match = _NAME.fullmatch(name)
        if match is None or Kind(match[2]).drawn != (match[3] is not None):
            raise UsageError(
                f"{name!r} is not a crash point",
                hint="such as w01234-clean, w01234-flushed, w01234-lost-s7, w01234-reordered-s7",
            )
        return cls(int(match[1]), Kind(match[2]), int(match[3] or 0))


def places(log: WriteLog, start: int = 0, end: int | None = None) -> range:
    """Return the places of a part of a log: from before its first entry to after its last.

    Args:
        log: The log.
        start: The number of entries before the part.
        end: The number of entries up to its end; all by default.
    """
    return range(start, (len(log.entries) if end is None else end) + 1)


def pick(
    among: range, share: int, shares: int, seed: int, *, name: str = "", end: int | None = None
) -> Point:
    """Return one point of a sample: a random place of one of the equal shares of all places.

    So the points of a sample are spread over all places, whichever the seed, and four consecutive
    points have the four kinds. With ``end``, the last point is that place, with all pending writes
    lost: there the recorded action had promised the most.

    Args:
        among: The places.
        share: The number of the share, from 0.
        shares: The number of shares, which is the number of points in the sample.
        seed: The seed of the sample.
        name: The recording's name, by which small samples of several recordings differ in their kinds.
        end: The place at which the recorded action reported its end, or ``None``. A sample of one
            point does not use it.

    Raises:
        UsageError: The sample has no such share.
    """
    if not 0 <= share < shares:
        raise UsageError(f"a sample of {shares} points has no point {share}")
    if end is not None and shares > 1:
        if share == shares - 1:
            return Point(end, Kind.FLUSHED)
        shares -= 1
    low = len(among) * share // shares
    high = max(low + 1, len(among) * (share + 1) // shares)
    # Random takes no tuple as a seed; a string gives the same numbers in every process.
    draw = random.Random(f"{seed}/{share}/{shares}")
    kinds = list(Kind)
    random.Random(f"{seed}/{name}/{share // len(kinds)}").shuffle(kinds)
    place = among[min(draw.randrange(low, high), len(among) - 1)]
    return Point(place, kinds[share % len(kinds)], draw.randrange(1, 1000))


def sample(among: range, shares: int, seed: int) -> list[Point]:
    """Return the points of a sample, in the order of their places."""
    return [pick(among, share, shares, seed) for share in range(shares)]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an entry that reaches the disk.

    Attributes:
        entry: The entry.
        skip: The sectors of the entry before the part.
        sectors: The sectors that reach the disk.
    """

    entry: LogEntry
    skip: int
    sectors: int


def survivors(pending: Sequence[LogEntry], point: Point) -> list[Part]:
    """Return the parts of the pending writes that are on the disk at a point, in order.

    Args:
        pending: The result of :meth:`WriteLog.pending <harness.qemu.writelog.WriteLog.pending>`.
        point: The point.
    """
    draw = random.Random(point.name)
    likely = draw.choice((0.1, 0.5, 0.9))
    kept = []
    for entry in pending:
        whole = Part(entry, 0, entry.sectors)
        # A write with FUA is always durable.
        if entry.fua or point.kind is Kind.CLEAN:
            kept.append(whole)
        elif point.kind.drawn and draw.random() < likely:
            kept.append(_torn(whole, draw) if point.kind is Kind.REORDERED else whole)
    return kept


def _torn(part: Part, draw: random.Random) -> Part:
    """Return the part or, half of the time, a stretch of it."""
    if part.sectors < 2 or draw.random() < 0.5:
        return part
    start, end = sorted(draw.sample(range(part.sectors + 1), 2))
    return Part(part.entry, start, end - start)
