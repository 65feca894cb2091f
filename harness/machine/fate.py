"""What becomes of a machine: whether it ended, whether that was wanted, what it failed with."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from harness.console import Console
from harness.deadline import after
from harness.errors import GuestStoppedError, HarnessError, QemuExitedError, TpmError
from harness.qemu.process import OwnedProcess
from harness.qemu.qmp import Event


class Waits(Protocol):
    """A part of a machine that somebody may be waiting on."""

    def fail(self, error: HarnessError) -> None:
        """End all waits with ``error``."""


class Fate:
    """What becomes of one machine.

    QEMU's monitor, its process and the console's watchers tell it what happens, each from a thread
    of its own. The first failure is the machine's, and ends the waits on all its parts at once.

    Args:
        name: The machine's name, for messages.

    Attributes:
        console: The machine's console, once there is one.
        process: The machine's QEMU, once there is one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._failure: HarnessError | None = None
        self._stopped = False
        self._end_expected = False
        self._waits: list[Waits] = []
        self._checks: list[Callable[[], HarnessError | None]] = []
        self.console: Console | None = None
        self.process: OwnedProcess | None = None

    @property
    def failure(self) -> HarnessError | None:
        """What the machine failed with, or ``None``."""
        return self._failure

    @property
    def stopped(self) -> bool:
        """Whether the guest powered off, or QEMU ended."""
        return self._stopped

    def ends(self, part: Waits) -> None:
        """Let a failure end the waits on a part of the machine; also one that has been already."""
        with self._lock:
            self._waits.append(part)
            failure = self._failure
        if failure is not None:
            part.fail(failure)

    def expect_end(self) -> None:
        """Take note that the machine's end is wanted from now on: it is no failure of the guest."""
        with self._lock:
            self._end_expected = True

    @contextlib.contextmanager
    def checking(self, check: Callable[[], HarnessError | None]) -> Iterator[None]:
        """In the block, let the machine fail with what a check returns after a reset, if anything.

        Args:
            check: Asked from the loop's thread; must not block.
        """
        with self._lock:
            self._checks.append(check)
        try:
            yield
        finally:
            with self._lock:
                self._checks.remove(check)

    def on_exit(self, process: OwnedProcess) -> None:
        """Take note that QEMU has ended; called in the loop's thread."""
        with self._lock:
            expected = self._end_expected
            self._stopped = True
        how = process.how_ended()
        if expected:
            self.fail(GuestStoppedError(f"machine {self._name} was stopped"))
        else:
            self.fail(
                QemuExitedError(
                    f"QEMU of machine {self._name} ended ({how}) under the running guest",
                    evidence=process.last_words() or str(process.stderr),
                    hint="out of memory on the host? see 'harness doctor' and the kernel's log",
                )
            )

    def on_tpm_exit(self, process: OwnedProcess) -> None:
        """Take note that the TPM has ended; called in the loop's thread."""
        # It ends well when QEMU closes the connection.
        if process.status != 0 and not self._end_expected:
            self.fail(
                TpmError(
                    f"the TPM of machine {self._name} ended ({process.how_ended()}) under the"
                    " running guest",
                    evidence=process.last_words() or str(process.stderr),
                )
            )

    def how_the_console_ended(self) -> BaseException:
        """Say why QEMU closed the console; called in the console's own thread."""
        process = self.process
        if process is not None:
            process.wait(after(10, scaled=False))
        return self._failure or QemuExitedError(f"QEMU of machine {self._name} closed the console")

    def on_console_failure(self, error: BaseException) -> None:
        """Take note of what a watcher saw; called in the console's own thread."""
        if isinstance(error, HarnessError):
            self.fail(error)

    def on_event(self, event: Event) -> None:
        """Take note of what QEMU's monitor tells; called in the loop's thread."""
        assert self.console is not None
        if event.name == "SHUTDOWN":
            with self._lock:
                self._stopped = True
                expected = self._end_expected
            reason = event.data.get("reason", "unknown")
            if not expected:
                self.fail(
                    GuestStoppedError(
                        f"machine {self._name} powered off ({reason}) and nobody had asked it to",
                        evidence=self.console.last_output(),
                        hint="use machine.wait_for_shutdown() where the scenario expects it",
                    )
                )
        elif event.name == "RESET":
            self.console.forget_login()
            with self._lock:
                checks = tuple(self._checks)
            for check in checks:
                if (error := check()) is not None:
                    self.fail(error)

    def fail(self, error: HarnessError) -> None:
        """Let the machine have failed, and end the waits on its parts; the first failure stays."""
        with self._lock:
            if self._failure is None:
                self._failure = error
            parts = list(self._waits)
        for part in parts:
            part.fail(error)
