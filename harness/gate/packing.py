"""Packs tests into shards: the longest first, tests that start from the same state beside each other.

A test starts from states, such as ``installed``, which the first test of a shard that uses one has to
make: a test costs more on a shard that does not have its states yet. :func:`pack` tries "longest
processing time first" (Graham, "Bounds on multiprocessing timing anomalies", 1969) with these set-up
times, over all tests and by groups of the same states, and with groups kept together as long as a shard
has room; the most even result wins.

With the first of these the slowest shard exceeds the mean by no more than one :class:`Unit` with its
states: when the last unit of the slowest shard was placed, each other shard would have ended later with
it. So no shard exceeds the mean by 15 percent if no unit takes more than that by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

PartT = TypeVar("PartT")

OVERHEAD: Final = 15.0
"""Seconds of a shard before its first machine starts and after its last: Python, collection, results."""


EVEN: Final = 1.15
"""How many times the mean the slowest shard should take at most."""


@dataclass(frozen=True)
class Unit:
    """Tests that one shard runs: a test, or all those that share a machine.

    Attributes:
        tests: Their node ids.
        seconds: What they take, once their states are there.
        states: The states that they start from, and the seconds that each takes to make.
    """

    tests: tuple[str, ...]
    seconds: float
    states: Mapping[str, float] = field(default_factory=dict)

    @functools.cached_property
    def group(self) -> tuple[str, ...]:
        """The names of its states."""
        return tuple(sorted(self.states))

    @property
    def alone(self) -> float:
        """What a shard with nothing else takes."""
        return OVERHEAD + self.seconds + math.fsum(self.states.values())


@dataclass(frozen=True, slots=True)
class Shard:
    """The units of one job.

    Attributes:
        units: The units.
        states: Their states, with the seconds that each takes.
    """

    units: tuple[Unit, ...]
    states: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """What the shard takes."""
        work = math.fsum(unit.seconds for unit in self.units)
        return OVERHEAD + work + math.fsum(self.states.values())

    @property
    def tests(self) -> tuple[str, ...]:
        """The node ids of its tests."""
        return tuple(test for unit in self.units for test in unit.tests)


def pack(units: Sequence[Unit], count: int) -> list[Shard]:
    """Return as many shards as asked for, or fewer if there are fewer units; none is empty.

    Args:
        units: The units; the same ones in any order give the same shards.
        count: How many shards, at least 1.
    """
    count = min(count, len(units))
    if count <= 1:
        return _place(_by_length(units), count, 0.0)
    states: dict[str, float] = {}
    for unit in units:
        states.update(unit.states)
    work = math.fsum(unit.seconds for unit in units) + math.fsum(states.values())
    even = OVERHEAD + work / count
    orders = (_by_length(units), _by_group(units))
    rooms = (0.0, even, EVEN * even)
    candidates = [_place(order, count, room) for order in orders for room in rooms]
    best = min(candidates, key=_badness)
    return sorted(best, key=lambda shard: (-shard.seconds, shard.tests))


def unevenness(packed: Sequence[Shard]) -> float:
    """Return the seconds of the slowest shard, as a multiple of the mean."""
    seconds = [shard.seconds for shard in packed]
    return max(seconds) * len(seconds) / math.fsum(seconds)


def _badness(packed: Sequence[Shard]) -> tuple[bool, float, float]:
    seconds = [shard.seconds for shard in packed]
    return (unevenness(packed) > EVEN, max(seconds), math.fsum(seconds))


def _place(order: Sequence[Unit], count: int, room: float) -> list[Shard]:
    """Return shards, each unit on one that has its states and room, or else where it ends first.

    Args:
        order: The units.
        count: How many shards.
        room: The seconds up to which a shard takes a unit for its states; 0 for never.
    """
    places = range(count)
    units: list[list[Unit]] = [[] for _ in places]
    states: list[dict[str, float]] = [{} for _ in places]
    loads = [OVERHEAD] * count
    # By group: what its states would still cost each shard.
    missing = {unit.group: [math.fsum(unit.states.values())] * count for unit in order}
    chains = {unit.group: unit.states for unit in order}
    for unit in order:
        setup, limit = missing[unit.group], room - unit.seconds
        # On the fullest one that has room: the others keep theirs for what comes.
        fitting = [place for place in places if loads[place] + setup[place] <= limit]
        if fitting:
            chosen = min(fitting, key=lambda place: (setup[place], -loads[place]))
        else:
            chosen = min(places, key=lambda place: loads[place] + setup[place])
        loads[chosen] += unit.seconds + setup[chosen]
        units[chosen].append(unit)
        if setup[chosen]:
            states[chosen].update(unit.states)
            for key, chain in chains.items():
                new = (cost for name, cost in chain.items() if name not in states[chosen])
                missing[key][chosen] = math.fsum(new)
    return [Shard(tuple(units[place]), states[place]) for place in places if units[place]]


def _by_length(units: Sequence[Unit]) -> list[Unit]:
    return sorted(units, key=lambda unit: (-unit.seconds, unit.group, unit.tests))


def _by_group(units: Sequence[Unit]) -> list[Unit]:
    """Return units by groups, the longest group first."""
    totals: dict[tuple[str, ...], float] = {}
    for unit in sorted(units, key=lambda unit: unit.tests):
        totals[unit.group] = totals.get(unit.group, 0.0) + unit.seconds
    return sorted(
        _by_length(units), key=lambda unit: (-totals[unit.group], unit.group, -unit.seconds)
    )


def shards(units: Sequence[Unit], target: float, most: int) -> list[Shard]:
    """Return the fewest shards that take no longer than a target each, or as near to it as can be.

    Args:
        units: The units.
        target: The seconds that a shard should take at most.
        most: How many shards there may be.
    """
    if not units:
        return []
    most = min(most, len(units))
    total = OVERHEAD + math.fsum(unit.seconds for unit in units)
    count = max(1, min(most, math.ceil(total / target)))
    best = pack(units, count)
    # A unit that takes longer by itself is no reason for more shards.
    limit = max(target, *(unit.alone for unit in units))
    while best[0].seconds > limit and count < most:
        count = min(most, max(count + 1, int(count * best[0].seconds / limit)))
        best = pack(units, count)
    return best


def fit(
    parts: Mapping[PartT, Sequence[Unit]], target: float, most: int
) -> dict[PartT, list[Shard]]:
    """Return the shards of several parts that together are no more than a limit.

    Args:
        parts: The units of each part, such as an image on an architecture; a shard has one part's.
        target: The seconds that a shard should take at most; more where the limit requires it.
        most: How many shards there may be in all.

    Raises:
        ValueError: There are more parts than shards.
    """
    filled = {name: units for name, units in parts.items() if units}
    if len(filled) > most:
        raise ValueError(f"{len(filled)} parts do not fit into {most} jobs")
    while True:
        packed = {name: shards(units, target, most) for name, units in filled.items()}
        if sum(map(len, packed.values())) <= most:
            return packed
        target *= 1.1
