"""Names the moments at which power can go, and spreads a sample over them.

A *place* is a number of entries of the log that are completed. At each place power can go in four
kinds of ways, which differ in what becomes of the writes that no flush followed:

=============  ==================================================================================
``clean``      all of them are on the disk
``flushed``    none of them is
``lost``       some of them, each whole
``reordered``  some of them, whole or in part: a write of many sectors is torn, and a later one may be
               there where an earlier one is not
=============  ==================================================================================

A disk writes a sector whole or not at all, and never puts an older version of it over a newer one
that it has. So whatever order a disk chose, what is found is a choice, for each sector, among its
versions since the last flush and the one before; ``reordered`` draws from these, and needs no order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from harness.crash.log import Entry, WriteLog
from harness.errors import UsageError

_NAME: Final = re.compile(r"w(\d+)-(clean|flushed|lost|reordered)(?:-s(\d+))?")


class Kind(StrEnum):
    """What becomes of the writes that no flush followed."""

    CLEAN = "clean"
    FLUSHED = "flushed"
    LOST = "lost"
    REORDERED = "reordered"

    @property
    def drawn(self) -> bool:
        """Whether chance decides, by a seed."""
        return self in (Kind.LOST, Kind.REORDERED)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A place and a way for power to go there.

    Its name is all there is to know of it: the same name on the same recording is the same disk.

    Attributes:
        place: How many entries of the log are completed.
        kind: What becomes of those that are not flushed.
        seed: What decides where chance does.
    """

    place: int
    kind: Kind
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name, such as ``w01234-lost-s7``."""
        seed = f"-s{self.seed}" if self.kind.drawn else ""
        return f"w{self.place:05d}-{self.kind}{seed}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the point of a name.

        Raises:
            UsageError: if it is none.
        """
        match = _NAME.fullmatch(name)
        if match is None or Kind(match[2]).drawn != (match[3] is not None):
            raise UsageError(
                f"{name!r} is no crash point",
                hint="such as w01234-clean, w01234-flushed, w01234-lost-s7, w01234-reordered-s7",
            )
        return cls(int(match[1]), Kind(match[2]), int(match[3] or 0))


def places(log: WriteLog, start: int = 0, end: int | None = None) -> range:
    """Return the places of a part of a log: from before its first entry to after its last.

    Args:
        log: The log.
        start: The entries before the part.
        end: The entries up to its end; all by default.
    """
    return range(start, (len(log.entries) if end is None else end) + 1)


def pick(
    among: range, slot: int, slots: int, seed: int, *, name: str = "", done: int | None = None
) -> Point:
    """Return one point of a sample: one of the ``slot``-th of as many equal parts of the places.

    So the points of a sample are spread over all places, whatever the seed, and four that follow
    one another are of the four kinds. The last one is where what was done said that it was done, with
    all lost that no flush followed: of all places the one where the most is promised.

    Args:
        among: The places.
        slot: From 0.
        slots: How many points the sample has.
        seed: Another seed is another sample.
        name: Of what was recorded: small samples of several recordings differ in their kinds.
        done: The place where it was done; ``None`` if there is none, and with a sample of one.

    Raises:
        UsageError: if there is no such slot.
    """
    if not 0 <= slot < slots:
        raise UsageError(f"a sample of {slots} points has none numbered {slot}")
    if done is not None and slots > 1:
        if slot == slots - 1:
            return Point(done, Kind.FLUSHED)
        slots -= 1
    low = len(among) * slot // slots
    high = max(low + 1, len(among) * (slot + 1) // slots)
    # Strings: a tuple's hash is not for seeding, and Random takes none.
    draw = random.Random(f"{seed}/{slot}/{slots}")
    kinds = list(Kind)
    random.Random(f"{seed}/{name}/{slot // len(kinds)}").shuffle(kinds)
    place = among[min(draw.randrange(low, high), len(among) - 1)]
    return Point(place, kinds[slot % len(kinds)], draw.randrange(1, 1000))


def sample(among: range, slots: int, seed: int) -> list[Point]:
    """Return the points of a sample, in the order of their places."""
    return [pick(among, slot, slots, seed) for slot in range(slots)]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an entry that reaches the disk.

    Attributes:
        entry: The entry.
        skip: Sectors of it that are left out before it.
        sectors: How many reach the disk.
    """

    entry: Entry
    skip: int
    sectors: int


def survivors(pending: Sequence[Entry], point: Point) -> list[Part]:
    """Return what of the writes that no flush followed is on the disk at a point, in order.

    Args:
        pending: As :meth:`WriteLog.pending <harness.crash.log.WriteLog.pending>` gives them.
        point: The point.
    """
    draw = random.Random(point.name)
    likely = draw.choice((0.1, 0.5, 0.9))
    kept = []
    for entry in pending:
        whole = Part(entry, 0, entry.sectors)
        # What was written with FUA is there whatever happens.
        if entry.fua or point.kind is Kind.CLEAN:
            kept.append(whole)
        elif point.kind.drawn and draw.random() < likely:
            kept.append(_torn(whole, draw) if point.kind is Kind.REORDERED else whole)
    return kept


def _torn(part: Part, draw: random.Random) -> Part:
    """Return the part, or, one time in two, a stretch of it."""
    if part.sectors < 2 or draw.random() < 0.5:
        return part
    start, end = sorted(draw.sample(range(part.sectors + 1), 2))
    return Part(part.entry, start, end - start)
