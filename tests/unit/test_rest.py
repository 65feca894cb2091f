"""A guest comes to rest: by the CPU time of its QEMU, on a busy host too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.deadline import UNSCALED
from harness.machine import rest
from harness.qemu.process import Activity


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def activity(cpu: float, waited: float = 0.0) -> Activity:
    return Activity(cpu, {1: waited, 2: 0.0})


START = activity(7.0)


@pytest.mark.parametrize(
    ("now", "busy"),
    [
        pytest.param(activity(8.0), True, id="boots"),
        pytest.param(activity(7.05), False, id="at its prompt"),
        pytest.param(activity(7.16), False, id="a member of a cluster"),
        # The host gave it a fifth of a CPU, and it took all of that.
        pytest.param(activity(7.2, 0.8), True, id="boots, on a busy host"),
        pytest.param(activity(7.05, 0.5), False, id="at its prompt, on a busy host"),
    ],
)
def test_busy(now: Activity, busy: bool) -> None:
    assert rest.is_busy(START, now, 1.0) is busy


class Process:
    """A QEMU that takes these CPU seconds from one look to the next, then ends."""

    def __init__(self, clock: Clock, *looks: float) -> None:
        self._clock = clock
        self._looks: Iterator[float] = iter(looks)
        self._cpu = 0.0
        self._ended = False

    def activity(self) -> Activity:
        return activity(self._cpu)

    def wait(self, limit: Any) -> bool:
        took = next(self._looks, None)
        if took is None:
            return True
        self._clock.now += limit.remaining()
        self._cpu += took
        return False


def wait(clock: Clock, process: Process, seconds: float = 60) -> bool:
    return rest.wait(process, UNSCALED.after(seconds))  # type: ignore[arg-type]


def test_it_waits_as_long_as_the_guest_is_busy(clock: Clock) -> None:
    assert wait(clock, Process(clock, 0.5, 0.4, 0.3, 0.01, 9.9))
    assert clock.now == pytest.approx(100 + 4 * rest.LOOK)


def test_a_guest_that_computes_for_ever_is_not_waited_for(clock: Clock) -> None:
    assert not wait(clock, Process(clock, *[0.5] * 100), seconds=3)
    assert clock.now == pytest.approx(100 + 3)


def test_a_qemu_that_ends_is_not_waited_for(clock: Clock) -> None:
    assert wait(clock, Process(clock, 0.5))
    assert clock.now == pytest.approx(100 + rest.LOOK)
