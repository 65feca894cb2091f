"""Deadlines that follow the load of the host, and what a wait says of them at its end."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness.deadline import MOST, NEVER, UNSCALED, Conditions, Deadline, Scale, run
from harness.errors import (
    ConnectionLostError,
    GuestIdleError,
    PanicError,
    Verdict,
    WaitTimeoutError,
    verdict_of,
)
from tests.clocks import Loaded


class Clock:
    """A clock whose stretch a test sets, on a monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calm_seconds, self.factor = 1000.0, 0.0, 1.0
        self.conditions = Conditions()
        monkeypatch.setattr("harness.deadline.time.monotonic", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.calm_seconds += seconds / self.factor

    def calm(self) -> float:
        return self.calm_seconds

    def stretch(self) -> float:
        return self.factor

    def during(self, since: float) -> Conditions:
        return self.conditions


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_load_in_the_middle_of_a_wait_stretches_it_for_as_long_as_it_lasts(clock: Clock) -> None:
    limit = Scale(2.0, clock=clock).after(30)
    clock.pass_(30)
    clock.factor = 4.0
    clock.pass_(40)
    assert limit.remaining() > 0
    assert limit.remaining() == pytest.approx(80)
    clock.factor = 1.0
    assert limit.remaining() == pytest.approx(20)
    clock.pass_(19.9)
    assert limit.remaining() > 0
    clock.pass_(0.2)
    assert limit.expired
    assert limit.remaining() == 0
    assert limit.elapsed == pytest.approx(90.1)


def test_a_wait_ends_at_eight_times_its_length_even_if_nothing_runs(clock: Clock) -> None:
    limit = Scale(clock=clock).after(10)
    clock.factor = 1e9
    clock.pass_(10 * MOST - 1)
    assert limit.remaining() > 0
    assert limit.remaining() == pytest.approx(1)
    clock.pass_(1)
    assert limit.expired


def test_a_clock_never_ends_a_wait_before_its_length(clock: Clock) -> None:
    limit = Scale(clock=clock).after(10)
    clock.calm_seconds += 100
    assert limit.remaining() > 0
    clock.pass_(10)
    assert limit.expired


def test_a_waiter_wakes_to_look_again_when_the_load_may_have_gone(clock: Clock) -> None:
    limit = Scale(clock=clock).after(10)
    clock.factor = 8.0
    assert limit.timeout() == pytest.approx(10)
    clock.pass_(79)
    # Nearly over: once a second is often enough.
    assert limit.timeout() == pytest.approx(1)
    assert limit.poll_timeout() == pytest.approx(1000)


def test_wait_goes_on_until_the_stretched_end(clock: Clock) -> None:
    limit = Scale(clock=clock).after(10)
    clock.factor = 4.0
    asked: list[float | None] = []

    def step(left: float | None) -> bool:
        asked.append(left)
        clock.pass_(left or 0)
        return False

    assert not limit.wait(step)
    assert clock.now == pytest.approx(1040, abs=1)
    assert asked[-1] == 0
    assert len(asked) < 20


def test_wait_returns_what_succeeds_and_looks_once_at_a_deadline_that_has_passed() -> None:
    done = threading.Event()
    assert not UNSCALED.after(0.01).wait(done.wait)
    done.set()
    assert UNSCALED.after(-1).wait(done.wait)
    assert NEVER.wait(done.wait)
    assert UNSCALED.after(1e300).wait(done.wait)


def test_fixed_deadlines_are_as_they_were(clock: Clock) -> None:
    limit = UNSCALED.after(5)
    clock.factor = 8.0
    clock.pass_(5)
    assert limit.expired
    assert (limit.account(), limit.pressure()) == ("", "")
    assert not NEVER.expired
    assert NEVER.timeout() is None
    assert Deadline(0, time.monotonic()).expired


def test_a_timeout_says_how_long_the_wait_became_and_why(clock: Clock) -> None:
    limit = Scale(8.0, "emulation", clock).after(60)
    clock.pass_(480)
    calm = WaitTimeoutError("a login prompt", limit, silent=3.0)
    assert str(calm) == (
        "waited 480.0 s for a login prompt (60 s x 8 (emulation));"
        " the guest has been silent for 3.0 s"
    )
    assert verdict_of(calm) is Verdict.TIMEOUT
    clock.conditions = Conditions(2.3, "CPU: QEMU got 31 % of what it asked for", "suspended")
    late = WaitTimeoutError("a login prompt", limit, last_output="one\ntwo")
    first, *rest = str(late).splitlines()
    assert first == (
        "waited 480.0 s for a login prompt (60 s x 8 (emulation), stretched x 2.3 for the load of"
        " the host, suspended); the host is the likely cause: CPU: QEMU got 31 % of what it asked for"
    )
    assert rest[0] == "  last output:"
    assert verdict_of(late) is Verdict.INFRA


def test_pressure_makes_infra_of_stalls_and_of_nothing_else(clock: Clock) -> None:
    figures = "CPU: QEMU got 3 % of what it asked for"
    assert verdict_of(GuestIdleError("x", 300.0, pressure=figures)) is Verdict.INFRA
    assert verdict_of(GuestIdleError("x", 300.0)) is Verdict.TIMEOUT
    assert verdict_of(ConnectionLostError("x", pressure=figures)) is Verdict.INFRA
    assert verdict_of(ConnectionLostError("x")) is Verdict.PRODUCT
    assert verdict_of(PanicError("the kernel panicked")) is Verdict.PRODUCT


def test_a_program_has_the_stretched_time() -> None:
    limit = Scale(clock=Loaded()).after(2.0)
    ended = run(["sh", "-c", "echo before; sleep 2.5; echo behind"], limit)
    assert (ended.returncode, ended.stdout) == (0, b"before\nbehind\n")
    assert limit.elapsed > limit.seconds


def test_a_program_ends_at_its_deadline() -> None:
    limit = Scale(clock=Loaded()).after(0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        run(["sleep", "3600"], limit)
    assert limit.expired


def test_a_program_has_no_input_and_its_folder(tmp_path: Path) -> None:
    ended = run(["sh", "-c", "cat; pwd; echo no >&2; exit 3"], NEVER, at=tmp_path)
    assert (ended.returncode, ended.stdout) == (3, f"{tmp_path}\n".encode())
    assert ended.stderr == b"no\n"
