"""What becomes of a machine: the first failure is told to each part, whenever that comes."""

from __future__ import annotations

from harness.errors import HarnessError, PanicError, QemuExitedError
from harness.machine.fate import Fate


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
