from __future__ import annotations

from collections import Counter

import pytest

from harness.errors import UsageError
from harness.powercut.points import Kind, Point, pick, sample, survivors
from harness.qemu.writelog import FUA, LogEntry

PENDING = [LogEntry(number * 8, 8, 0, 0) for number in range(40)]


@pytest.mark.parametrize(
    "name", ["w00000-clean", "w01234-flushed", "w01234-lost-s7", "w123456-reordered-s0"]
)
def test_the_name_of_a_point_is_its_whole_identity(name: str) -> None:
    assert Point.parse(name).name == name


@pytest.mark.parametrize(
    "name", ["w1-lost", "w1-clean-s3", "w-clean", "x1-clean", "w1-torn-s1", ""]
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a crash point"):
        Point.parse(name)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("total", [40, 41, 1000])
def test_a_sample_is_spread_over_all_places(seed: int, total: int) -> None:
    among = range(100, 100 + total)
    points = sample(among, 10, seed)
    for share, point in enumerate(points):
        assert total * share // 10 <= point.place - 100 < total * (share + 1) // 10
    assert points == sorted(points, key=lambda point: point.place)
    assert {point.kind for point in points[:4]} == set(Kind)


@pytest.mark.parametrize("shares", range(2, 9))
def test_the_last_point_of_a_sample_is_where_the_action_was_done(shares: int) -> None:
    among = range(100, 201)
    points = [pick(among, share, shares, 1, end=180) for share in range(shares)]
    assert points[-1] == Point(180, Kind.FLUSHED)
    for share, point in enumerate(points[:-1]):
        assert 101 * share // (shares - 1) <= point.place - 100 < 101 * (share + 1) // (shares - 1)
    assert 100 <= pick(among, 0, 1, 1, end=180).place <= 200, (
        "the point of a sample of one may be anywhere"
    )


def test_small_samples_of_several_recordings_differ_in_their_kinds() -> None:
    first = {
        name: [pick(range(100), share, 2, 1, name=name).kind for share in range(2)]
        for name in ("install", "upgrade", "reset", "repair")
    }
    assert len({tuple(kinds) for kinds in first.values()}) > 1


def test_a_seed_decides_the_sample() -> None:
    assert sample(range(1000), 20, 1) == sample(range(1000), 20, 1)
    assert sample(range(1000), 20, 1) != sample(range(1000), 20, 2)


def test_a_sample_may_have_more_points_than_places() -> None:
    assert {point.place for point in sample(range(3, 5), 9, 1)} == {3, 4}
    with pytest.raises(UsageError, match="has no point 9"):
        pick(range(3), 9, 9, 1)


def test_some_seed_reaches_each_place() -> None:
    seen = Counter(point.place for seed in range(300) for point in sample(range(20), 4, seed))
    assert set(seen) == set(range(20))


def test_clean_keeps_all_pending_writes_and_flushed_none() -> None:
    assert len(survivors(PENDING, Point(40, Kind.CLEAN))) == 40
    assert survivors(PENDING, Point(40, Kind.FLUSHED)) == []


@pytest.mark.parametrize("kind", list(Kind))
def test_a_write_with_fua_always_survives(kind: Kind) -> None:
    pending = [*PENDING, LogEntry(999, 8, FUA, 0)]
    for seed in range(50):
        last = survivors(pending, Point(41, kind, seed))[-1]
        assert (last.entry.sector, last.skip, last.sectors) == (999, 0, 8)


def test_lost_keeps_whole_writes_and_reordered_tears_some() -> None:
    some = [survivors(PENDING, Point(40, Kind.LOST, seed)) for seed in range(30)]
    assert all(part.sectors == 8 for parts in some for part in parts)
    assert len({len(parts) for parts in some}) > 10
    torn = [survivors(PENDING, Point(40, Kind.REORDERED, seed)) for seed in range(30)]
    assert any(0 < part.sectors < 8 for parts in torn for part in parts)
    assert all(part.skip + part.sectors <= 8 for parts in torn for part in parts)
    places = [[part.entry.sector for part in parts] for parts in torn]
    assert places == [sorted(row) for row in places]
