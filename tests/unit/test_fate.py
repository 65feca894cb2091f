"""What becomes of a machine: the first failure is told to each part, whenever that comes."""

from __future__ import annotations

from typing import cast

from harness.console import Console
from harness.errors import HarnessError, PanicError, QemuExitedError
from harness.machine.fate import Fate
from harness.qemu.qmp import Event


class Part:
    def __init__(self) -> None:
        self.told: list[HarnessError] = []

    def fail(self, error: HarnessError) -> None:
        self.told.append(error)


def test_the_first_failure_stays_and_ends_the_waits_on_each_part() -> None:
    fate, one, other = Fate("m"), Part(), Part()
    fate.ends(one)
    fate.ends(other)
    panic = PanicError("the kernel panicked")
    fate.fail(panic)
    fate.fail(QemuExitedError("QEMU ended"))
    assert fate.failure is panic
    assert one.told[0] is other.told[0] is panic


def test_a_part_that_comes_after_the_failure_is_told_of_it() -> None:
    fate, late = Fate("m"), Part()
    panic = PanicError("the kernel panicked")
    fate.fail(panic)
    fate.ends(late)
    assert late.told == [panic]


class Told:
    """A console that is told of resets."""

    def forget_login(self) -> None:
        """Take note of a reset."""


def test_a_check_is_asked_after_each_reset_in_its_block() -> None:
    fate, part = Fate("m"), Part()
    fate.ends(part)
    fate.console = cast(Console, Told())
    reset = Event({"event": "RESET", "data": {}, "timestamp": {"seconds": 0, "microseconds": 0}})
    answers: list[HarnessError | None] = [None, PanicError("once too often")]
    asked = iter(answers)
    with fate.checking(lambda: next(asked)):
        fate.on_event(reset)
        assert fate.failure is None
        fate.on_event(reset)
    assert part.told == [fate.failure] == [answers[-1]]
    # Nobody asks any more: there is no answer left.
    fate.on_event(reset)
