"""The scheduler: a machine waits for room on this host, then learns how slow it will run there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import arch
from harness.deadline import UNSCALED, Scale
from harness.evidence.timeline import Timeline
from harness.host import speed
from harness.host.accel import Accel
from harness.host.admission import Admission, Grant, Need, footprint, fork_footprint, pool
from harness.host.capacity import capacity
from harness.host.pressure import Pressure
from harness.scope import Scope
from harness.spec import MachineSpec


def busy(spec: MachineSpec, accel: str) -> int:
    """Return how many of the host's CPUs a machine can keep busy.

    Where TCG has all virtual CPUs take turns in one thread, that is one.
    """
    turns = accel == "tcg" and arch.of(spec.arch).tcg_threads == "single"
    return 1 if turns else spec.cpus


@dataclass(frozen=True, slots=True)
class Turn:
    """A machine's turn on this host; a context manager whose exit gives the room back.

    Attributes:
        grant: The room that was granted; ``None`` for a machine that admission does not count.
        scale: How much longer the machine will take than on a good host, for its deadlines.
        pressure: Measures the host while the machine runs.
    """

    grant: Grant | None = None
    scale: Scale = UNSCALED
    pressure: Pressure | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that hold the grant: it ends when the last process closes them."""
        return () if self.grant is None else (self.grant.fileno(),)

    def watching(
        self, pid: int, timeline: Timeline, name: str
    ) -> contextlib.AbstractContextManager[None]:
        """Measure the host's pressure in the block: see :meth:`Pressure.watching`."""
        if self.pressure is None:
            return contextlib.nullcontext()
        return self.pressure.watching(pid, timeline, name)

    def release(self) -> None:
        """Give the room back; harmless if that was done before."""
        if self.grant is not None:
            self.grant.release()


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Lets machines onto a host that several runs share: each asks before its QEMU starts.

    Attributes:
        cache: The cache of the host, below which the runs find each other.
        accel: Returns the accelerator for an arch.
        timeout_scale: A factor for the deadlines of all machines, besides what the host needs.
        pressure: The clock of the machines' deadlines; without one they do not follow the load.
    """

    cache: Path
    accel: Callable[[str], Accel]
    timeout_scale: float = 1.0
    pressure: Pressure | None = None

    def admit(
        self,
        spec: MachineSpec,
        timeline: Timeline,
        fork: bool = False,
        *,
        working_set: int | None = None,
        urgent: bool = False,
        scope: Scope | None = None,
    ) -> Turn:
        """Wait for a machine's turn: :meth:`admit_together` of one."""
        (turn,) = self.admit_together(
            [spec],
            timeline,
            fork,
            working_set=working_set,
            urgent=urgent,
            scope=scope,
        )
        return turn

    def admit_together(
        self,
        specs: Sequence[MachineSpec],
        timeline: Timeline,
        fork: bool = False,
        *,
        working_set: int | None = None,
        urgent: bool = False,
        scope: Scope | None = None,
    ) -> tuple[Turn, ...]:
        """Wait until the host has room for all machines; return their turns with their scales.

        They are admitted together or not at all: two clusters never wait for each other's room. The time
        in line counts against no deadline; a step of the timeline says why they wait.

        Args:
            specs: The machines.
            timeline: Gets a step for each reason to wait.
            fork: Whether each machine shares the RAM of its origin.
            working_set: Bytes of RAM that a fork will write to: see
                :func:`harness.host.admission.fork_footprint`.
            urgent: Whether other tests wait for the result: see :meth:`Admission.admit_together`.
            scope: A failure scope; its failure ends the wait.

        Raises:
            HostError: The host can never carry them, or the cache cannot be used.
            HarnessError: The failure of the scope.
        """
        room = capacity()
        admission = Admission(pool(self.cache, room), room)
        accels = [self.accel(spec.arch) for spec in specs]
        name = ", ".join(spec.name for spec in specs)
        with contextlib.ExitStack() as waiting:

            def explain(reason: str) -> None:
                waiting.close()
                waiting.enter_context(timeline.step(reason, machine=name))

            grants = admission.admit_together(
                [
                    Need(
                        spec.name,
                        cpus=busy(spec, accel.name),
                        memory=fork_footprint(spec.memory, working_set)
                        if fork
                        else footprint(spec.memory, accel.name),
                    )
                    for spec, accel in zip(specs, accels, strict=True)
                ],
                urgent=urgent,
                progress=explain,
                scope=scope,
            )
        with contextlib.ExitStack() as undo:
            for grant in grants:
                undo.callback(grant.release)
            turns = []
            for spec, accel, grant in zip(specs, accels, grants, strict=True):
                if accel.doubt:
                    timeline.note("doubtful accelerator", machine=spec.name, what=accel.doubt)
                turns.append(Turn(grant, self._scale(accel, spec.arch), self.pressure))
            undo.pop_all()
        return tuple(turns)

    def _scale(self, accel: Accel, arch: str) -> Scale:
        return Scale(
            self.timeout_scale * speed.measure(accel.name, arch, self.cache),
            reason="emulation" if accel.name == "tcg" else "",
            # An accelerator that does not work gets no better when the load goes: the wait for it is not
            # stretched.
            clock=None if accel.doubt else self.pressure,
            doubt=accel.doubt,
        )
