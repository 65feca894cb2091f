"""Packing: each test in exactly one shard, shards that are even, states that are made seldom."""

from __future__ import annotations

import math
import random

import pytest

from harness.gate import packing
from harness.gate.packing import OVERHEAD, Unit

CHAINS: tuple[dict[str, float], ...] = (
    {},
    {"live": 25.0},
    {"live": 25.0, "installed": 80.0},
    {"live": 25.0, "installed": 80.0, "settled": 10.0},
    {"cluster-3": 200.0},
)


def some_units(seed: int) -> list[Unit]:
    chance = random.Random(seed)
    return [
        Unit(
            tuple(f"test_{number}_{part}" for part in range(chance.choice((1, 1, 1, 4)))),
            chance.lognormvariate(3.0, 1.0),
            chance.choice(CHAINS),
        )
        for number in range(chance.randint(1, 150))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_each_test_is_in_exactly_one_shard_and_a_unit_stays_whole(seed: int) -> None:
    units = some_units(seed)
    packed = packing.shards(units, 300.0, 20)
    assert 1 <= len(packed) <= 20
    assert sorted(t for shard in packed for t in shard.tests) == sorted(
        t for unit in units for t in unit.tests
    )
    for unit in units:
        homes = [shard for shard in packed if set(unit.tests) & set(shard.tests)]
        assert len(homes) == 1
    for shard in packed:
        states = {name: cost for unit in shard.units for name, cost in unit.states.items()}
        work = OVERHEAD + sum(unit.seconds for unit in shard.units) + sum(states.values())
        assert shard.units
        assert shard.seconds == pytest.approx(work)


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_the_units_changes_nothing(seed: int) -> None:
    units = some_units(seed)
    others = units[:]
    random.Random(seed + 1000).shuffle(others)
    tests = [shard.tests for shard in packing.shards(units, 200.0, 30)]
    assert [shard.tests for shard in packing.shards(others, 200.0, 30)] == tests


@pytest.mark.parametrize("seed", range(40))
def test_the_slowest_shard_takes_little_more_than_the_mean(seed: int) -> None:
    """As long as no unit, with its states, is more than what a shard may exceed the mean by."""
    chance = random.Random(seed)
    states = chance.choice(CHAINS[:4])
    units = [
        Unit((f"test_{number}",), chance.uniform(0.5, 40.0), chance.choice(CHAINS[:4]))
        for number in range(chance.randint(100, 300))
    ]
    units.append(Unit(("the_longest",), 40.0, states))
    for count in (2, 3, 5, 8):
        packed = packing.pack(units, count)
        mean = math.fsum(shard.seconds for shard in packed) / len(packed)
        if max(unit.alone for unit in units) <= 0.15 * mean:
            assert packing.unevenness(packed) <= 1.15, (count, mean)


def test_a_group_stays_on_one_shard_where_there_is_room() -> None:
    """Three groups with a costly state each, three shards: no state is made twice."""
    units = [
        Unit((f"test_{group}_{number}",), 20.0, {group: 200.0})
        for group in ("a", "b", "c")
        for number in range(10)
    ]
    packed = packing.pack(units, 3)
    assert [len(shard.states) for shard in packed] == [1, 1, 1]
    assert packing.unevenness(packed) == pytest.approx(1.0)


def test_a_group_that_is_too_long_for_one_shard_is_split() -> None:
    units = [Unit((f"test_{number}",), 30.0, {"installed": 60.0}) for number in range(40)]
    packed = packing.shards(units, 400.0, 100)
    assert len(packed) >= 4
    assert packed[0].seconds <= 400.0
    assert packing.unevenness(packed) <= 1.15


def test_a_test_that_is_longer_than_the_target_makes_no_further_shards() -> None:
    units = [Unit(("long",), 1000.0, {}), *(Unit((f"short_{n}",), 10.0, {}) for n in range(40))]
    assert len(packing.shards(units, 300.0, 50)) <= 5


def test_shards_of_several_parts_fit_a_limit() -> None:
    parts = {
        f"image-{number}": [Unit((f"{number}-{test}",), 100.0, {}) for test in range(10)]
        for number in range(60)
    }
    assert sum(map(len, packing.fit(parts, 110.0, 10_000).values())) == 600
    packed = packing.fit(parts, 110.0, 256)
    assert 60 <= sum(map(len, packed.values())) <= 256
    assert sum(len(shard.tests) for part in packed.values() for shard in part) == 600
    with pytest.raises(ValueError, match="60 parts do not fit into 50"):
        packing.fit(parts, 110.0, 50)


def test_nothing_makes_no_shard() -> None:
    assert packing.shards([], 600.0, 10) == []
    assert packing.fit({"a": []}, 600.0, 10) == {}
