"""A machine's power button, plug and reset line, and the waits for the guest's power-offs and resets."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Final

from harness.deadline import Deadline
from harness.errors import GuestIdleError, GuestStoppedError, HarnessError, WaitTimeoutError
from harness.machine.display import Display
from harness.machine.parts import Parts
from harness.machine.vitals import Vitals
from harness.machine.watchdog import Hang, HangWatchdog

_BEFORE_A_HANG: Final = 60.0
"""Seconds before a guest fell silent in which a host under pressure may have been the cause."""

_DESCRIBED: Final = "harness_display"
"""The attribute of an error whose notes have the display."""

_ONE_RESET: Final = 1.0
"""Seconds; no guest boots and restarts within them, firmware alone takes longer."""


class Power:
    """The power of one running machine; :class:`~harness.machine.Machine` documents the words.

    Args:
        parts: The machine's parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._watchdog = HangWatchdog(lambda: Vitals(parts).look, self._report_hang)
        self._bounds = 0  # the blocks of restarting_at_most() that are open

    def wait_for_shutdown(self, limit: Deadline) -> None:
        """Wait until the guest has powered off by itself, then stop the machine."""
        parts = self._parts
        parts.ending.intend()
        with parts.timeline.step("wait for power-off", machine=parts.name, limit=limit.seconds):
            parts.wait_for_event("the guest to power off", ("SHUTDOWN",), limit, since=0)
        parts.stop()

    def shutdown(self, limit: Deadline) -> None:
        """Press the power button, wait until the guest has powered off, then stop the machine."""
        parts = self._parts
        parts.ending.intend()
        with parts.timeline.step("shut down by ACPI", machine=parts.name, limit=limit.seconds):
            mark = parts.qmp.mark()
            parts.qmp.execute("system_powerdown")
            parts.wait_for_event("the guest to power off", ("SHUTDOWN",), limit, since=mark)
        parts.stop()

    def wait_for_reset(self, limit: Deadline, *, since: int) -> None:
        """Wait until the guest resets, or return if it has since a mark."""
        parts = self._parts
        with parts.timeline.step("wait for reset", machine=parts.name, limit=limit.seconds):
            parts.wait_for_event("the guest to reset", ("RESET",), limit, since=since)

    @contextlib.contextmanager
    def coming_up(self, idle_seconds: float, restarts: int) -> Iterator[None]:
        """Fail the machine in the block once its guest hangs, or restarts over and over.

        Args:
            idle_seconds: For how long the guest may make no progress.
            restarts: How often it may be reset. A block of :meth:`restarting_at_most` around this one
                sets the bound instead.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watchdog.watching(idle_seconds))
            if not self._bounds:
                stack.enter_context(self.restarting_at_most(restarts, since=None))
            try:
                yield
            except WaitTimeoutError as error:
                self._add_display(error)
                raise

    def _add_display(self, error: WaitTimeoutError) -> None:
        """Add to a timeout what the display shows: firmware and boot loaders may be there alone."""
        # Blocks may be nested, and one error ends several waits.
        if not self._parts.spec.display or getattr(error, _DESCRIBED, False):
            return
        vars(error)[_DESCRIBED] = True
        with contextlib.suppress(HarnessError):
            error.add_note(Display(self._parts).describe())

    @contextlib.contextmanager
    def restarting_at_most(self, times: int, *, since: int | None) -> Iterator[None]:
        """Fail the machine in the block as soon as it has been reset more often than ``times``."""
        parts = self._parts
        start = parts.qmp.mark() if since is None else since

        def too_often() -> GuestStoppedError | None:
            if self.restarts(start) <= times:
                return None
            return GuestStoppedError(
                f"machine {parts.name} was restarted before it came up"
                if times == 0
                else f"machine {parts.name} was restarted more often than {times} times",
                evidence=f"{parts.log}\n{parts.console.last_output()}",
                pressure=parts.console.excuse(),
                hint="see the end of each boot in the log; a scenario in which a system tries more often"
                " sets its own bound: machine.restarting_at_most(n)",
            )

        def check() -> None:
            if (error := too_often()) is not None:
                raise error

        self._bounds += 1
        try:
            with parts.ending.checking(too_often):
                check()
                yield
            check()
        finally:
            self._bounds -= 1

    def restarts(self, since: int = 0) -> int:
        """Return how often the guest was reset after a mark, since the start by default."""
        qmp = self._parts.qmp
        times = [event.seconds for event in qmp.seen(("RESET",))]
        return count_restarts(times, len(qmp.seen(("RESET",), since)))

    def _report_hang(self, hang: Hang) -> bool:
        """Fail the machine, whose guest hangs while it comes up; return whether it was running."""
        parts = self._parts
        registers = parts.evidence / "cpus.txt"
        try:
            if not parts.qmp.execute("query-status")["running"]:
                return False  # The test has paused it.
            registers.write_text(parts.qmp.human("info registers -a"))
            where = f"the registers of its CPUs are in {registers}"
        except (WaitTimeoutError, OSError) as error:
            where = f"the registers of its CPUs are unknown: {error}"
        except HarnessError:
            return True  # It has just ended, and that ends the waits.
        remarks = [
            f"QEMU took {hang.cpu:.1f} s of CPU meanwhile and waited {hang.starved:.1f} s for more",
            parts.console.remarks(),
        ]
        parts.ending.fail(
            GuestIdleError(
                f"{parts.name} to come up, and it made no progress",
                hang.seconds,
                last_output=parts.console.last_output(),
                silent=parts.console.silent_for(),
                remarks="; ".join(filter(None, remarks)),
                evidence=str(parts.log),
                pressure=parts.scale.pressure(hang.seconds + _BEFORE_A_HANG),
                doubt=parts.scale.doubt,
                hint=f"{where}; does it wait for a key? If not, run it again: emulation loses an"
                " interrupt now and then",
            )
        )
        return True


def count_restarts(times: Sequence[float], last: int) -> int:
    """Return how many restarts the last resets are.

    A reset right after another is one restart with it: SeaBIOS resets the machine once more when it
    detects that it has run before (its ``src/romlayout.S``, ``entry_post``, and ``src/resume.c``). It
    does so once, so a third one begins the next pair: a guest that resets in a loop is not one restart.

    Args:
        times: The times of all resets in seconds, oldest first.
        last: How many of them count, from the end.
    """
    begins: list[bool] = []
    first = -math.inf
    for now in times:
        # The times are those of the wall clock, which may be set back between two of them.
        second = abs(now - first) <= _ONE_RESET
        begins.append(not second)
        first = -math.inf if second else now
    return sum(begins[len(begins) - last :])
