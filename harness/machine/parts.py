"""The parts of a running machine, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.deadline import Deadline, Scale
from harness.errors import UsageError, WaitTimeoutError
from harness.evidence.timeline import Timeline
from harness.machine.ending import Ending
from harness.scope import Scope
from harness.spec import MachineSpec

if TYPE_CHECKING:
    from harness.console import Console
    from harness.qemu.argv import Allocations
    from harness.qemu.process import OwnedProcess
    from harness.qemu.qmp import Event, Qmp
    from harness.ssh import Ssh
    from harness.states.save import Memory


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a running machine, which the components of :class:`~harness.machine.Machine` share.

    A part that is ``None`` is one that the machine does not have by its spec.

    Attributes:
        spec: The machine's spec.
        evidence: The folder of its evidence.
        timeline: Gets its steps.
        scope: Its failure scope, below the test's.
        scale: Its scale of deadlines.
        ending: Decides whether its end is a failure.
        allocations: Its files, descriptors and accelerator on this host.
        process: Its QEMU.
        console: Its console.
        qmp: QEMU's monitor.
        ports: Host address and port by forwarded port of the guest.
        ssh: Its SSH session; ``None`` where no interface forwards port 22.
        memory: Its RAM, where Harness holds it as well, so that it can be saved.
        stack: Everything that was started, in the order in which it ends.
    """

    spec: MachineSpec
    evidence: Path
    timeline: Timeline
    scope: Scope
    scale: Scale
    ending: Ending
    allocations: Allocations
    process: OwnedProcess
    console: Console
    qmp: Qmp
    ports: Mapping[int, tuple[str, int]]
    ssh: Ssh | None
    memory: Memory | None
    stack: ExitStack
    _stopping: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.spec.name

    @property
    def log(self) -> Path:
        """The log of the console."""
        return self.evidence / "serial.log"

    @property
    def running(self) -> bool:
        """Whether QEMU runs and the guest has not powered off."""
        return self.process.running and not self.ending.stopped

    def require_ssh(self) -> Ssh:
        """Return the SSH session.

        Raises:
            UsageError: No interface of the spec forwards port 22.
        """
        if self.ssh is None:
            raise UsageError(
                f"machine {self.name} has no SSH: no interface forwards port 22",
                hint="name it in the spec: Nic(forward=(22,)); or use machine.console",
            )
        return self.ssh

    def stop(self) -> None:
        """End QEMU at once, if it runs, and release everything but the evidence.

        A second call, from any thread, waits for the first and does nothing else.
        """
        with self._stopping:
            self.stack.close()

    def wait_for_event(
        self, awaited: str, names: Sequence[str], limit: Deadline, *, since: int
    ) -> Event:
        """Return the first event of QEMU with one of these names.

        Args:
            awaited: The meaning of the event, for the message: ``the guest to reset``.
            names: The events' names.
            limit: When to give up.
            since: A :meth:`Qmp.mark <harness.qemu.qmp.Qmp.mark>`.

        Raises:
            WaitTimeoutError: The deadline passed; carries the guest's last output.
            HarnessError: The failure of the scope.
        """
        try:
            return self.qmp.wait(names, limit, since=since)
        except WaitTimeoutError as error:
            raise WaitTimeoutError(
                f"{awaited} on {self.name}",
                limit,
                last_output=self.console.last_output(),
                silent=self.console.silent_for(),
                remarks=self.console.remarks(),
                evidence=str(self.log),
            ) from error
