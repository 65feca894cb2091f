"""A guest that is to come up and does nothing is told of; one that does anything is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from harness.machine.pulse import Pulse

SHORT = 0.2


def test_a_silent_idle_guest_is_told_of_once() -> None:
    told: list[float] = []
    stopped = threading.Event()

    def stop(seconds: float) -> None:
        told.append(seconds)
        stopped.set()

    pulse = Pulse(lambda: (7.0, False), lambda: 1000.0, stop)
    with pulse.watched(SHORT), pulse.watched(1000.0):
        assert stopped.wait(30)
    assert len(told) == 1
    assert told[0] >= SHORT


@pytest.mark.parametrize(
    ("activity", "silent"),
    [
        pytest.param(lambda: (time.monotonic(), False), lambda: 1000.0, id="computes"),
        pytest.param(lambda: (7.0, True), lambda: 1000.0, id="is starved by the host"),
        pytest.param(lambda: (7.0, False), lambda: 0.0, id="prints"),
    ],
)
def test_a_guest_that_does_something_is_not(
    activity: Callable[[], tuple[float, bool]], silent: Callable[[], float]
) -> None:
    looked = threading.Semaphore(0)
    told: list[float] = []

    def watched_activity() -> tuple[float, bool]:
        looked.release()
        return activity()

    with Pulse(watched_activity, silent, told.append).watched(SHORT):
        # Three times as often as it takes to tell of one that is idle.
        for _ in range(60):
            assert looked.acquire(timeout=30)
    assert told == []


def test_it_ends_with_the_block() -> None:
    told: list[float] = []
    before = threading.active_count()
    pulse = Pulse(lambda: (0.0, False), lambda: 1000.0, told.append)
    for _ in range(2):
        with pulse.watched(1000.0):
            assert threading.active_count() == before + 1
        assert threading.active_count() == before
    assert told == []
