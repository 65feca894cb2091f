"""What is done to a machine from outside: its power, its reset, its CPUs, its display."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from harness.console import Expected
from harness.deadline import Deadline, of
from harness.errors import (
    GuestError,
    GuestIdleError,
    GuestStoppedError,
    HarnessError,
    UsageError,
    WaitTimeoutError,
)
from harness.machine.pulse import Pulse
from harness.machine.start import Startable
from harness.qemu.qmp import Event

_ONE_RESET: Final = 1.0
"""Seconds; no guest boots and restarts within them, firmware alone takes longer."""


class Powered(Startable):
    """A machine with a power button, a plug, and somebody who waits for what it does with them."""

    def wait_for_shutdown(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the guest powers off by itself; one that has already is fine.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: at the deadline.
            GuestError: if the guest fails first.
        """
        limit = of(deadline, 60)
        self._fate.expect_end()
        with self.timeline.step("wait for power-off", machine=self.name):
            self._await("the guest to power off", ("SHUTDOWN",), limit, since=0)
        self.stop()

    def wait_for_reset(self, deadline: Deadline | float | None = None, *, since: int = 0) -> None:
        """Wait until the guest resets: a reboot it was told to do.

        Args:
            deadline: 60 s on a good host by default.
            since: A :meth:`Qmp.mark <harness.qemu.qmp.Qmp.mark>` from before the reboot.
        """
        with self.timeline.step("wait for reset", machine=self.name):
            self._await("the guest to reset", ("RESET",), of(deadline, 60), since=since)

    @contextlib.contextmanager
    def coming_up(self) -> Iterator[None]:
        """Let the machine fail in the block once its guest has been silent and idle for minutes.

        For what waits until a guest has booted; how long is the profile's ``idle_seconds``.

        Raises:
            GuestIdleError: out of whatever waits on the machine.
        """
        with self._pulse.watched(self.os.idle_seconds):
            yield

    @functools.cached_property
    def _pulse(self) -> Pulse:
        silent = self.console.silent_for  # says so of a machine that has not been started
        assert self._process is not None
        return Pulse(self._process.activity, silent, self._hang)

    def _hang(self, seconds: float) -> None:
        """Let the machine fail: its guest was silent and idle for so long while it came up."""
        told = self.evidence / "cpus.txt"
        try:
            if not self.qmp.execute("query-status")["running"]:
                return  # Somebody has paused it.
            told.write_text(self.qmp.human("info registers -a"))
        except (HarnessError, OSError):
            return  # It has just ended, which is told of by itself.
        self._fate.fail(
            GuestIdleError(
                f"{self.name} to come up, and it did nothing",
                seconds,
                last_output=self.console.last_output(),
                silent=self.console.silent_for(),
                evidence=str(self.evidence / "serial.log"),
                hint=f"what its CPUs were at is in {told}; does it wait for a key? If not, run it again:"
                " emulation loses an interrupt now and then",
            )
        )

    @contextlib.contextmanager
    def restarting_at_most(self, times: int, *, since: int | None = None) -> Iterator[None]:
        """Let the machine fail in the block as soon as it is reset more often than that.

        Args:
            times: How many resets are fine; 0 where it has to come up at its first try.
            since: A :meth:`Qmp.mark <harness.qemu.qmp.Qmp.mark>`; resets before it do not count. The
                block's beginning by default.

        Raises:
            GuestStoppedError: if it is reset once more, out of whatever waits on the machine.
        """
        start = self.qmp.mark() if since is None else since

        def too_often() -> GuestStoppedError | None:
            if self._restarts(start) <= times:
                return None
            return GuestStoppedError(
                f"machine {self.name} was restarted before it came up"
                if times == 0
                else f"machine {self.name} was restarted more often than {times} times",
                evidence=f"{self.evidence / 'serial.log'}\n{self.console.last_output()}",
            )

        def check() -> None:
            if (error := too_often()) is not None:
                raise error

        with self._fate.checking(too_often):
            check()
            yield
        check()

    def _restarts(self, since: int) -> int:
        """Return how often the guest was reset after a mark.

        A reset right after another is one with it: SeaBIOS resets the machine once more where it finds
        that it has run before (its ``src/romlayout.S``, ``entry_post``, and ``src/resume.c``).
        """
        times = [event.seconds for event in self.qmp.seen(("RESET",))]
        after = len(self.qmp.seen(("RESET",), since))
        pairs = list(zip([-math.inf, *times], times, strict=False))
        return sum(now - before > _ONE_RESET for before, now in pairs[len(times) - after :])

    def _await(self, what: str, names: Sequence[str], limit: Deadline, *, since: int) -> Event:
        try:
            return self.qmp.wait(names, limit, since=since)
        except WaitTimeoutError as error:
            raise WaitTimeoutError(
                what,
                limit.seconds,
                last_output=self.console.last_output(),
                silent=self.console.silent_for(),
                evidence=str(self.evidence / "serial.log"),
            ) from error

    def shutdown(self, deadline: Deadline | float | None = None) -> None:
        """Press the power button (ACPI) and wait for the guest to power off.

        Args:
            deadline: 60 s on a good host by default.
        """
        self._fate.expect_end()
        with self.timeline.step("shut down by ACPI", machine=self.name):
            mark = self.qmp.mark()
            self.qmp.execute("system_powerdown")
            self._await("the guest to power off", ("SHUTDOWN",), of(deadline, 60), since=mark)
        self.stop()

    def power_cut(self) -> None:
        """Take the power away: QEMU is killed; the disks stay as they are."""
        with self.timeline.step("power cut", machine=self.name):
            self.stop()

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        """Let the guest's CPUs run again."""
        self.qmp.execute("cont")

    def screenshot(self, path: Path | None = None) -> Path:
        """Write what the VGA adapter shows as PNG and return the path.

        Raises:
            UsageError: if the machine has no display; ``console.screen`` is what a serial console shows.
        """
        if not self.spec.display:
            raise UsageError(
                f"machine {self.name} has no display",
                hint="boot it with display=True, or look at console.screen",
            )
        target = path or self.evidence / f"screen-{int(time.time() * 1000)}.png"
        self.qmp.execute("screendump", {"filename": str(target), "format": "png"})
        return target

    @contextlib.contextmanager
    def expecting(self, *kinds: type[GuestError]) -> Iterator[Expected]:
        """Let the block provoke failures of these kinds: the machine's watchers only record them."""
        with self.console.expecting(*kinds) as seen:
            yield seen
