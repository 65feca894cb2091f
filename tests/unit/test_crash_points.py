from __future__ import annotations

from collections import Counter

import pytest

from harness.crash.log import FUA, Entry
from harness.crash.points import Kind, Point, pick, sample, survivors
from harness.errors import UsageError

PENDING = [Entry(number * 8, 8, 0, 0) for number in range(40)]


@pytest.mark.parametrize(
    "name", ["w00000-clean", "w01234-flushed", "w01234-lost-s7", "w123456-reordered-s0"]
)
def test_a_name_is_the_whole_identity(name: str) -> None:
    assert Point.parse(name).name == name


@pytest.mark.parametrize(
    "name", ["w1-lost", "w1-clean-s3", "w-clean", "x1-clean", "w1-torn-s1", ""]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no crash point"):
        Point.parse(name)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("total", [40, 41, 1000])
def test_a_sample_is_spread_over_all_places(seed: int, total: int) -> None:
    among = range(100, 100 + total)
    points = sample(among, 10, seed)
    for slot, point in enumerate(points):
        assert total * slot // 10 <= point.place - 100 < total * (slot + 1) // 10
    assert points == sorted(points, key=lambda point: point.place)
    assert {point.kind for point in points[:4]} == set(Kind)


@pytest.mark.parametrize("slots", range(2, 9))
def test_the_last_of_a_sample_is_where_most_is_promised(slots: int) -> None:
    among = range(100, 201)
    points = [pick(among, slot, slots, 1, done=180) for slot in range(slots)]
    assert points[-1] == Point(180, Kind.FLUSHED)
    for slot, point in enumerate(points[:-1]):
        assert 101 * slot // (slots - 1) <= point.place - 100 < 101 * (slot + 1) // (slots - 1)
    assert 100 <= pick(among, 0, 1, 1, done=180).place <= 200, "a sample of one is anywhere"


def test_small_samples_of_several_recordings_are_of_other_kinds() -> None:
    first = {
        name: [pick(range(100), slot, 2, 1, name=name).kind for slot in range(2)]
        for name in ("install", "upgrade", "reset", "repair")
    }
    assert len({tuple(kinds) for kinds in first.values()}) > 1


def test_a_seed_is_a_sample_and_another_is_another() -> None:
    assert sample(range(1000), 20, 1) == sample(range(1000), 20, 1)
    assert sample(range(1000), 20, 1) != sample(range(1000), 20, 2)


def test_more_slots_than_places_do_no_harm() -> None:
    assert {point.place for point in sample(range(3, 5), 9, 1)} == {3, 4}
    with pytest.raises(UsageError, match="none numbered 9"):
        pick(range(3), 9, 9, 1)


def test_every_place_is_reached_by_some_seed() -> None:
    seen = Counter(point.place for seed in range(300) for point in sample(range(20), 4, seed))
    assert set(seen) == set(range(20))


def test_clean_keeps_all_and_flushed_none() -> None:
    assert len(survivors(PENDING, Point(40, Kind.CLEAN))) == 40
    assert survivors(PENDING, Point(40, Kind.FLUSHED)) == []


@pytest.mark.parametrize("kind", list(Kind))
def test_fua_survives_whatever_happens(kind: Kind) -> None:
    pending = [*PENDING, Entry(999, 8, FUA, 0)]
    for seed in range(50):
        last = survivors(pending, Point(41, kind, seed))[-1]
        assert (last.entry.sector, last.skip, last.sectors) == (999, 0, 8)


def test_lost_keeps_some_whole_and_reordered_tears() -> None:
    some = [survivors(PENDING, Point(40, Kind.LOST, seed)) for seed in range(30)]
    assert all(part.sectors == 8 for parts in some for part in parts)
    assert len({len(parts) for parts in some}) > 10
    torn = [survivors(PENDING, Point(40, Kind.REORDERED, seed)) for seed in range(30)]
    assert any(0 < part.sectors < 8 for parts in torn for part in parts)
    assert all(part.skip + part.sectors <= 8 for parts in torn for part in parts)
    places = [[part.entry.sector for part in parts] for parts in torn]
    assert places == [sorted(each) for each in places]
