"""The factor for deadlines: its parts, and the stored measurement."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.errors import UnknownNameError
from harness.host import measured, speed
from harness.host.speed import REFERENCE, measure, processor


class Clock:
    """A clock on which each round of the computation takes a fixed time."""

    def __init__(self, *rounds: float) -> None:
        self.seconds = 0.0
        self.count = 0
        self._rounds: Iterator[float] = iter(rounds)
        self._last = 0.0

    def __call__(self) -> float:
        return self.seconds

    def work(self) -> None:
        self.count += 1
        self._last = next(self._rounds, self._last)
        self.seconds += self._last


@pytest.fixture
def cache_of(tmp_path: Path) -> Callable[[float], Path]:
    """Return a function that returns a cache with the measurement of a slower processor."""

    def cache_of(times: float) -> Path:
        clock = Clock(times * REFERENCE)
        assert processor(tmp_path, work=clock.work, clock=clock) == pytest.approx(times)
        return tmp_path

    return cache_of


def test_kvm_on_a_good_host_has_factor_one(cache_of: Callable[[float], Path]) -> None:
    assert measure("kvm", "x86_64", cache_of(1.0)) == pytest.approx(1.0)


def test_a_fast_host_shortens_emulation_but_no_factor_is_below_one(
    cache_of: Callable[[float], Path],
) -> None:
    cache = cache_of(0.5)
    assert measure("kvm", "x86_64", cache) == 1.0
    assert measure("tcg", "x86_64", cache) == pytest.approx(4.0)


def test_a_slow_host_takes_longer(cache_of: Callable[[float], Path]) -> None:
    cache = cache_of(3.0)
    assert measure("kvm", "aarch64", cache) == pytest.approx(3.0)
    assert measure("tcg", "x86_64", cache) == pytest.approx(24.0)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="accelerator"):
        measure("xen", "x86_64", tmp_path)
    with pytest.raises(UnknownNameError, match="arch"):
        measure("tcg", "riscv64", tmp_path)


def test_the_best_round_counts(tmp_path: Path) -> None:
    clock = Clock(*(REFERENCE * times for times in (9, 5, 2, 7, 3, 8, 6)))
    assert processor(tmp_path, work=clock.work, clock=clock) == pytest.approx(2.0)
    assert clock.count == 7


def test_the_processor_is_measured_once_per_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("one")
    monkeypatch.setattr(measured, "BOOT_ID", boot_id)
    first, second, third = Clock(REFERENCE), Clock(2 * REFERENCE), Clock(3 * REFERENCE)
    assert processor(tmp_path, work=first.work, clock=first) == pytest.approx(1.0)
    assert processor(tmp_path, work=second.work, clock=second) == pytest.approx(1.0)
    assert second.count == 0
    boot_id.write_text("two")
    assert processor(tmp_path, work=third.work, clock=third) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", "null", '"x"', '{"key": 0}'),
        *(f'{{"key": 0, "measured": {value}}}' for value in ('{"processor": 1}', 1, "null")),
    ],
)
def test_a_damaged_measurement_is_repeated(cache_of: Callable[[float], Path], damage: str) -> None:
    cache = cache_of(1.0)
    (cache / "speed.json").write_text(damage)
    clock = Clock(2 * REFERENCE)
    assert processor(cache, work=clock.work, clock=clock) == pytest.approx(2.0)
    assert processor(cache) == pytest.approx(2.0)


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "1e9", '"fast"', "[]", "true"])
def test_an_impossible_measurement_is_repeated(
    cache_of: Callable[[float], Path], value: str
) -> None:
    cache = cache_of(1.0)
    path = cache / "speed.json"
    stored = json.loads(path.read_text())
    key = json.dumps(stored["key"])
    path.write_text(f'{{"key": {key}, "measured": {{"processor": {value}}}}}')
    clock = Clock(2 * REFERENCE)
    assert processor(cache, work=clock.work, clock=clock) == pytest.approx(2.0)


@pytest.mark.parametrize(("seconds", "factor"), [(0.0, 1 / 16), (1000.0, 16.0)])
def test_a_wrong_clock_gives_a_bounded_factor(
    tmp_path: Path, seconds: float, factor: float
) -> None:
    clock = Clock(seconds)
    assert processor(tmp_path, work=clock.work, clock=clock) == factor


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    clock = Clock(2 * REFERENCE)
    cache = tmp_path / "file" / "cache"
    assert processor(cache, work=clock.work, clock=clock) == pytest.approx(2.0)


def test_the_computation_takes_time_of_this_thread() -> None:
    start = time.thread_time()
    speed.computation()
    assert time.thread_time() > start
