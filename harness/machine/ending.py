"""The end of a machine: whether it was intended, or is a failure of the machine's scope."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from harness.deadline import SUDDEN, UNSCALED, Scale
from harness.errors import GuestStoppedError, HarnessError, QemuExitedError, TpmError
from harness.host.oom import OomKills
from harness.scope import Scope

if TYPE_CHECKING:
    from harness.console import Console
    from harness.qemu.process import OwnedProcess
    from harness.qemu.qmp import Event


class Ending:
    """Turns what QEMU, its monitor, the console and the TPM report into the end of a scope.

    Each of them reports from a thread of its own. Until :meth:`begin`, a failure ends this machine's
    scope alone: the caller of :func:`~harness.machine.launch` gets it as an exception and may try again.
    From then on it fails the scope, and with it every wait of the test. An intended end
    (:meth:`intend`) ends only the waits on this machine.

    Args:
        name: The machine's name, for messages.
        scope: The machine's failure scope.
        kills: Counts what the kernel kills for want of memory; that of this process' cgroup by default.
        scale: The machine's scale of deadlines, whose clock knows the pressure on the host.
    """

    def __init__(
        self,
        name: str,
        scope: Scope,
        kills: OomKills | None = None,
        *,
        scale: Scale = UNSCALED,
    ) -> None:
        self._name = name
        self._scope = scope
        self._kills = OomKills() if kills is None else kills
        self._scale = scale
        self._lock = threading.Lock()
        self._begun = False
        self._intended = False
        self._stopped = False
        self._checks: list[Callable[[], HarnessError | None]] = []

    @property
    def stopped(self) -> bool:
        """Whether the guest powered off, or QEMU ended."""
        return self._stopped

    def begin(self) -> None:
        """Let failures reach the whole test from now on.

        Raises:
            HarnessError: The machine has failed already.
        """
        with self._lock:
            self._begun = True
        self._scope.check()

    def intend(self) -> None:
        """Take the machine's end from now on as intended: it is no failure of the guest."""
        with self._lock:
            self._intended = True

    def fail(self, error: HarnessError) -> None:
        """Fail the machine's scope; the scope's first failure stays."""
        with self._lock:
            if not self._begun:
                # Under the lock, so that begin() either sees this failure or comes before it.
                self._scope.end(error)
                return
        self._scope.fail(error)

    @contextlib.contextmanager
    def checking(self, check: Callable[[], HarnessError | None]) -> Iterator[None]:
        """In the block, call a check after each reset and fail with the error that it returns.

        Args:
            check: Called from the loop's thread; must not block.
        """
        with self._lock:
            self._checks.append(check)
        try:
            yield
        finally:
            with self._lock:
                self._checks.remove(check)

    # --- reports ------------------------------------------------------------------------------

    def on_exit(self, process: OwnedProcess) -> None:
        """Take the end of QEMU; called in the loop's thread."""
        with self._lock:
            # QEMU may crash in an intended shutdown, too.
            intended = self._intended and not process.failed
            self._stopped = True
        if intended:
            self._scope.end(GuestStoppedError(f"machine {self._name} was stopped"))
        else:
            killed = self._kills.words() if process.status == -signal.SIGKILL else ""
            self.fail(
                QemuExitedError(
                    f"QEMU of machine {self._name} ended ({process.how_ended()}) under the running"
                    f" guest{f'; {killed}' if killed else ''}",
                    evidence=process.last_words() or str(process.stderr),
                    hint="out of memory on the host? see 'harness doctor' and the kernel's log",
                    pressure=self._scale.pressure(SUDDEN),
                )
            )

    def on_tpm_exit(self, process: OwnedProcess) -> None:
        """Take the end of the TPM; called in the loop's thread."""
        # It ends with status 0 when QEMU closes the connection.
        if process.status != 0 and not self._intended:
            self.fail(
                TpmError(
                    f"the TPM of machine {self._name} ended ({process.how_ended()}) under the"
                    " running guest",
                    evidence=process.last_words() or str(process.stderr),
                    pressure=self._scale.pressure(SUDDEN),
                )
            )

    def explain_console_end(self, process: OwnedProcess) -> BaseException:
        """Return the reason why QEMU closed the console; called in the console's own thread."""
        process.wait(UNSCALED.after(10))
        return self._scope.failure or QemuExitedError(
            f"QEMU of machine {self._name} closed the console",
            pressure=self._scale.pressure(SUDDEN),
        )

    def on_console_failure(self, error: BaseException) -> None:
        """Take a failure that a watcher of the console saw; called in the console's own thread."""
        if isinstance(error, HarnessError):
            self.fail(error)

    def on_event(self, console: Console, event: Event) -> None:
        """Take an event of QEMU's monitor; called in the loop's thread."""
        if event.name == "SHUTDOWN":
            with self._lock:
                self._stopped = True
                intended = self._intended
            reason = event.data.get("reason", "unknown")
            if not intended:
                self.fail(
                    GuestStoppedError(
                        f"machine {self._name} powered off ({reason}) without being asked to",
                        evidence=console.last_output(),
                        hint="use machine.wait_for_shutdown() where the scenario expects it",
                        pressure=console.excuse(),
                    )
                )
        elif event.name == "RESET":
            with self._lock:
                checks = tuple(self._checks)
            # First: they judge the boot that has just ended.
            for check in checks:
                if (error := check()) is not None:
                    self.fail(error)
            console.forget_login()
