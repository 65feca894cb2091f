"""The hang watchdog reports a guest that makes no progress while it comes up, and no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from harness.machine import watchdog as module
from harness.machine.watchdog import Hang, HangWatchdog, Look

SHORT = 0.2
IDLE = Look(advanced=False, stalled=False, cpu=0.0, starved=0.0)


class Guest:
    """Shows the watchdog one look after the other, the last one for ever; counts them."""

    def __init__(self, *looks: Look | Callable[[], Look]) -> None:
        self._looks = looks
        self.looks = 0
        self.looked = threading.Semaphore(0)
        self.hangs: list[Hang] = []
        self.reported = threading.Event()
        self.running = True

    def begin(self) -> Callable[[], Look]:
        return self.look

    def look(self) -> Look:
        look = self._looks[min(self.looks, len(self._looks) - 1)]
        self.looks += 1
        self.looked.release()
        return look if isinstance(look, Look) else look()

    def on_hang(self, hang: Hang) -> bool:
        self.hangs.append(hang)
        if self.running:
            self.reported.set()
        return self.running

    def watchdog(self) -> HangWatchdog:
        return HangWatchdog(self.begin, self.on_hang)

    def wait_for_looks(self, count: int) -> None:
        for _ in range(count):
            assert self.looked.acquire(timeout=30)


def every(**signs: float | bool) -> Callable[[], Look]:
    """Return looks with these signs; CPU time and starvation are given for each second."""
    last = time.monotonic()

    def look() -> Look:
        nonlocal last
        before, last = last, time.monotonic()
        passed = last - before
        return Look(
            advanced=bool(signs.get("advanced")),
            stalled=bool(signs.get("stalled")),
            cpu=signs.get("cpu", 0) * passed,
            starved=signs.get("starved", 0) * passed,
        )

    return look


def test_a_guest_without_progress_is_reported_once() -> None:
    guest = Guest(IDLE)
    watchdog = guest.watchdog()
    with watchdog.watching(SHORT), watchdog.watching(1000.0):
        assert guest.reported.wait(30)
    assert len(guest.hangs) == 1
    assert guest.hangs[0].seconds >= SHORT


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([every(cpu=1.0)], id="computes"),
        pytest.param([every(advanced=True)], id="prints, reads or restarts"),
        pytest.param([every(advanced=True, stalled=True)], id="advances, and complains"),
        pytest.param(
            [every(stalled=True), every(advanced=True), every(cpu=1.0)],
            id="complained, came on, and computes since",
        ),
    ],
)
def test_a_guest_that_makes_progress_is_not_reported(looks: list[Callable[[], Look]]) -> None:
    guest = Guest(*looks)
    with guest.watchdog().watching(SHORT):
        # Three times as often as it takes to report an idle guest.
        guest.wait_for_looks(60)
    assert guest.hangs == []


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([every(stalled=True)], id="complains in each look"),
        pytest.param([every(stalled=True, cpu=2.0)], id="complains and spins"),
        pytest.param([every(stalled=True), every(cpu=2.0)], id="complained once, and spins"),
        pytest.param([every(cpu=0.05)], id="handles its timer"),
    ],
)
def test_a_guest_that_stands_still_is_reported_whatever_it_says(
    looks: list[Callable[[], Look]],
) -> None:
    guest = Guest(*looks)
    with guest.watchdog().watching(SHORT):
        assert guest.reported.wait(30)


def test_starvation_extends_the_limit_in_bounds_and_is_reported() -> None:
    guest = Guest(every(starved=1.0))
    with guest.watchdog().watching(SHORT):
        assert guest.reported.wait(30)
    (hang,) = guest.hangs
    # In its looks: those of a limit that is four times as long.
    assert guest.looks >= 4 * module._LOOKS / module._LONGEST
    assert hang.seconds >= SHORT / (1 - module.STARVED_MOST)
    assert hang.starved >= 0.9 * hang.seconds


def test_one_look_after_a_long_time_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The runner was stopped for an hour: its clock jumps between two looks.
    clock = iter(float(at) for at in [0, 1, 3601, 3602, 3603])
    guest = Guest(IDLE)

    def tick(timeout: float | None = None) -> bool:
        return next(ticks)

    ticks: Iterator[bool] = iter([False, False, False, True])
    done = threading.Event()
    monkeypatch.setattr(done, "wait", tick)
    # The module's own: other threads look at the clock as well.
    monkeypatch.setattr(
        "harness.machine.watchdog.time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    guest.watchdog()._watch(20.0, done)
    assert guest.hangs == []


def test_a_guest_that_was_paused_is_watched_on() -> None:
    guest = Guest(IDLE)
    guest.running = False
    with guest.watchdog().watching(SHORT):
        while len(guest.hangs) < 2:
            guest.wait_for_looks(1)
        guest.running = True
        assert guest.reported.wait(30)


def test_the_watchdog_ends_with_the_block() -> None:
    guest = Guest(IDLE)
    before = threading.active_count()
    watchdog = guest.watchdog()
    for _ in range(2):
        with watchdog.watching(1000.0):
            assert threading.active_count() == before + 1
        assert threading.active_count() == before
    assert guest.hangs == []
