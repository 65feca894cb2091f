"""What is done to a machine from outside: its power, its reset, its CPUs, its display."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.console import Expected
from harness.deadline import Deadline, of
from harness.errors import GuestError, UsageError, WaitTimeoutError
from harness.machine.start import Startable
from harness.qemu.qmp import Event


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
