"""The scale of deadlines: what it is made of, and what is remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import speed
from harness.errors import UnknownNameError
from harness.host import Capacity
from harness.speed import REFERENCE, crowding, measure, processor

ROOM = Capacity(cpus=4.0, memory=1, available=1, limit="host", cpu_limit="host")


def idle() -> tuple[float, float, float]:
    return (0.0, 0.0, 0.0)


class Clock:
    """A clock on which each round of the computation takes what it is told."""

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
def known(tmp_path: Path) -> Callable[[float], Path]:
    """Return a cache that remembers a processor so many times as slow as the reference."""

    def known(times: float) -> Path:
        clock = Clock(times * REFERENCE)
        assert processor(tmp_path, work=clock.work, clock=clock) == pytest.approx(times)
        return tmp_path

    return known


def test_kvm_on_a_good_host_is_one(known: Callable[[float], Path]) -> None:
    assert measure("kvm", "x86_64", known(1.0), room=ROOM, load=idle) == pytest.approx(1.0)


def test_a_fast_host_shortens_emulation_but_nothing_goes_below_one(
    known: Callable[[float], Path],
) -> None:
    cache = known(0.5)
    assert measure("kvm", "x86_64", cache, room=ROOM, load=idle) == 1.0
    assert measure("tcg", "x86_64", cache, room=ROOM, load=idle) == pytest.approx(4.0)


def test_a_slow_host_and_arm_on_it_take_longer(known: Callable[[float], Path]) -> None:
    cache = known(3.0)
    assert measure("kvm", "aarch64", cache, room=ROOM, load=idle) == pytest.approx(3.0)
    x86 = measure("tcg", "x86_64", cache, room=ROOM, load=idle)
    assert x86 == pytest.approx(24.0)
    assert measure("tcg", "aarch64", cache, room=ROOM, load=idle) > x86


def test_machines_that_share_cpus_take_longer(known: Callable[[float], Path]) -> None:
    cache = known(1.0)
    alone = measure("tcg", "x86_64", cache, busy=2, room=ROOM, load=idle)
    assert alone == pytest.approx(8.0)
    assert measure("tcg", "x86_64", cache, busy=8, room=ROOM, load=idle) == pytest.approx(16.0)


def test_what_else_the_host_does_counts_unless_a_cgroup_is_the_limit() -> None:
    def load() -> tuple[float, float, float]:
        return (10.0, 0.0, 0.0)

    assert crowding(ROOM, 2, load) == 2.5
    assert crowding(ROOM, 12, load) == 3.0
    assert crowding(replace(ROOM, cpu_limit="/sys/fs/cgroup/box"), 2, load) == 1.0


def test_half_a_cpu_is_half_as_fast_and_a_flood_has_an_end() -> None:
    assert crowding(replace(ROOM, cpus=0.5, cpu_limit="/sys/fs/cgroup/box"), 0) == 2.0
    assert crowding(ROOM, 0, lambda: (4000.0, 0.0, 0.0)) == 4.0


def test_a_host_without_load_averages_will_do() -> None:
    def none() -> tuple[float, float, float]:
        raise OSError

    assert crowding(ROOM, 8, none) == 2.0


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="accelerator"):
        measure("xen", "x86_64", tmp_path)
    with pytest.raises(UnknownNameError, match="arch"):
        measure("tcg", "riscv64", tmp_path)


def test_the_best_round_counts(tmp_path: Path) -> None:
    clock = Clock(*(REFERENCE * times for times in (9, 5, 2, 7, 3, 8, 6)))
    assert processor(tmp_path, work=clock.work, clock=clock) == pytest.approx(2.0)
    assert clock.count == 7


def test_it_is_measured_once_for_each_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("one")
    monkeypatch.setattr(speed, "_BOOT_ID", boot_id)
    first, second, third = Clock(REFERENCE), Clock(2 * REFERENCE), Clock(3 * REFERENCE)
    assert processor(tmp_path, work=first.work, clock=first) == pytest.approx(1.0)
    assert processor(tmp_path, work=second.work, clock=second) == pytest.approx(1.0)
    assert second.count == 0
    boot_id.write_text("two")
    assert processor(tmp_path, work=third.work, clock=third) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '"x"', *(f'{{"key": 0, "processor": {n}}}' for n in (1, "null"))],
)
def test_a_damaged_memory_is_measured_anew(known: Callable[[float], Path], damage: str) -> None:
    cache = known(1.0)
    (cache / "speed.json").write_text(damage)
    clock = Clock(2 * REFERENCE)
    assert processor(cache, work=clock.work, clock=clock) == pytest.approx(2.0)
    assert processor(cache) == pytest.approx(2.0)


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "1e9", '"fast"', "[]"])
def test_a_number_that_cannot_be_is_measured_anew(
    known: Callable[[float], Path], value: str
) -> None:
    cache = known(1.0)
    path = cache / "speed.json"
    stored = json.loads(path.read_text())
    path.write_text(f'{{"key": {json.dumps(stored["key"])}, "processor": {value}}}')
    clock = Clock(2 * REFERENCE)
    assert processor(cache, work=clock.work, clock=clock) == pytest.approx(2.0)


@pytest.mark.parametrize(("took", "wanted"), [(0.0, 1 / 16), (1000.0, 16.0)])
def test_a_clock_that_lies_has_bounds(tmp_path: Path, took: float, wanted: float) -> None:
    clock = Clock(took)
    assert processor(tmp_path, work=clock.work, clock=clock) == wanted


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    clock = Clock(2 * REFERENCE)
    cache = tmp_path / "file" / "cache"
    assert processor(cache, work=clock.work, clock=clock) == pytest.approx(2.0)


def test_the_computation_takes_time_of_this_thread() -> None:
    began = time.thread_time()
    speed.computation()
    assert time.thread_time() > began
