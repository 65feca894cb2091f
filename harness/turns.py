"""A machine's turn on this host: admission, then deadlines of the length that the host asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import deadline, speed
from harness.admission import Admission, Grant, footprint, fork_footprint, pool
from harness.evidence.timeline import Timeline
from harness.host import capacity
from harness.qemu.accel import Accel
from harness.spec import MachineSpec


@dataclass(frozen=True, slots=True)
class Turns:
    """Lets machines onto a host that many share: a machine asks before QEMU is started.

    Attributes:
        cache: The cache of the host, below which those who share it find each other.
        accel: Gives the accelerator for an arch.
        timeout_scale: What deadlines are stretched by besides what the host asks for.
    """

    cache: Path
    accel: Callable[[str], Accel]
    timeout_scale: float = 1.0

    def take(
        self,
        spec: MachineSpec,
        timeline: Timeline,
        fork: bool = False,
        *,
        working_set: int | None = None,
        urgent: bool = False,
    ) -> Grant:
        """Wait for a machine's turn, and set the scale of deadlines to what it will find.

        The time in line counts against no deadline; the timeline tells why it waits.

        Args:
            spec: The machine.
            timeline: Where a wait is told.
            fork: Whether it shares the RAM of what it goes on from.
            working_set: Bytes of RAM that a fork will write to: see
                :func:`harness.admission.fork_footprint`.
            urgent: Whether others wait for what it makes: see :meth:`Admission.admit_together`.

        Raises:
            HostError: if the host can never carry it, or the cache cannot be used.
        """
        room = capacity()
        admission = Admission(pool(self.cache, room), room)
        accel = self.accel(spec.arch)
        memory = (
            fork_footprint(spec.memory, working_set) if fork else footprint(spec.memory, accel.name)
        )
        with contextlib.ExitStack() as waiting:

            def tell(reason: str) -> None:
                waiting.close()
                waiting.enter_context(timeline.step(reason, machine=spec.name))

            grant = admission.admit(
                spec.name, memory=memory, cpus=spec.cpus, urgent=urgent, progress=tell
            )
        try:
            scale = speed.measure(
                accel.name, spec.arch, self.cache, busy=admission.status().cpus, room=room
            )
            deadline.set_scale(self.timeout_scale * scale)
        except BaseException:
            grant.release()
            raise
        return grant
