"""The hang watchdog reports a guest that does nothing while it comes up, and no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from harness.machine.watchdog import HangWatchdog

SHORT = 0.2


def test_a_silent_idle_guest_is_reported_once() -> None:
    reports: list[float] = []
    reported = threading.Event()

    def on_hang(seconds: float) -> None:
        reports.append(seconds)
        reported.set()

    watchdog = HangWatchdog(lambda: (7.0, False), lambda: 1000.0, on_hang)
    with watchdog.watching(SHORT), watchdog.watching(1000.0):
        assert reported.wait(30)
    assert len(reports) == 1
    assert reports[0] >= SHORT


@pytest.mark.parametrize(
    ("activity", "silent"),
    [
        pytest.param(lambda: (time.monotonic(), False), lambda: 1000.0, id="computes"),
        pytest.param(lambda: (7.0, True), lambda: 1000.0, id="is starved by the host"),
        pytest.param(lambda: (7.0, False), lambda: 0.0, id="prints"),
    ],
)
def test_a_guest_that_does_something_is_not_reported(
    activity: Callable[[], tuple[float, bool]], silent: Callable[[], float]
) -> None:
    looked = threading.Semaphore(0)
    reports: list[float] = []

    def counted_activity() -> tuple[float, bool]:
        looked.release()
        return activity()

    with HangWatchdog(counted_activity, silent, reports.append).watching(SHORT):
        # Three times as often as it takes to report an idle guest.
        for _ in range(60):
            assert looked.acquire(timeout=30)
    assert reports == []


def test_the_watchdog_ends_with_the_block() -> None:
    reports: list[float] = []
    before = threading.active_count()
    watchdog = HangWatchdog(lambda: (0.0, False), lambda: 1000.0, reports.append)
    for _ in range(2):
        with watchdog.watching(1000.0):
            assert threading.active_count() == before + 1
        assert threading.active_count() == before
    assert reports == []
