"""The rules by which CPUs and memory are granted, and the wait in line."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.deadline import NEVER, Deadline
from harness.errors import HostError, UsageError, WaitTimeoutError
from harness.host.admission.board import (
    Board,
    Claim,
    Occupancy,
    hung_up,
    milli,
    owner,
    place,
    watch,
)
from harness.host.admission.size import Limits
from harness.host.capacity import Capacity
from harness.scope import Scope
from harness.spec import format_size

_NAMED: Final = 5  # claims of others that a message lists


@dataclass(frozen=True, slots=True)
class Need:
    """The needs of a machine.

    Attributes:
        name: The machine's name.
        cpus: CPUs that the machine can keep busy. A need for more than the host grants gets all.
        memory: Bytes: see :func:`footprint`; less for a fork that shares its RAM.
    """

    name: str
    cpus: float
    memory: int

    def __post_init__(self) -> None:
        if not (self.cpus >= 0 and math.isfinite(self.cpus) and self.memory >= 0):
            raise UsageError(
                f"machine {self.name}: {self.cpus} CPUs and {self.memory} bytes are no valid need",
                hint="both must be finite and at least 0",
            )


class Grant:
    """Permission to use CPUs and memory, until :meth:`release` or the end of a ``with`` block.

    It ends with the process at the latest, and not when the object is garbage-collected.

    Attributes:
        name: The machine's name.
        cpus: CPUs that the grant counts for, possibly fewer than requested.
        memory: Bytes.
    """

    __slots__ = ("_fd", "cpus", "memory", "name")

    def __init__(self, name: str, cpus: float, memory: int, fd: int) -> None:
        self.name = name
        self.cpus = cpus
        self.memory = memory
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor that keeps the grant alive, also in a child that inherits it.

        Raises:
            UsageError: The grant was released.
        """
        if self._fd < 0:
            raise UsageError(f"the grant of machine {self.name} was released")
        return self._fd

    def release(self) -> None:
        """Return the grant to the host after the machine has ended; a second call does nothing.

        The grant continues to count, as this process', while a child still holds it.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Admission:
    """Grants the CPUs and the memory of a host.

    The rules:

    - Memory is a hard limit: the sum of all grants stays within :attr:`limits`. CPUs are shared: a need
      is cut to the free ones, and a process that holds a grant never waits for more CPUs.
    - First come, first served: no request overtakes a big machine that waits. Two kinds of request go
      first: those of a process that holds a grant, since the others may be waiting for its memory; and
      ``urgent`` ones, whose result the holders of grants wait for.
    - A request of a process that holds a grant is refused if it would never be served, because the
      processes that hold the rest wait as well. Machines that a test needs together are best
      requested together.

    A grant belongs to the process; all its threads count as one owner.

    Args:
        root: The folder that all processes on the host share: see :func:`pool`; created on first use.
        room: The capacity of this process: see :mod:`harness.host.capacity`.
    """

    def __init__(self, root: Path, room: Capacity) -> None:
        self.limits = Limits.of(room)
        self._room = room
        self._board = Board(root)

    def admit(
        self,
        name: str,
        *,
        memory: int,
        cpus: float = 2,
        urgent: bool = False,
        deadline: Deadline = NEVER,
        progress: Callable[[str], None] = lambda reason: None,
        scope: Scope | None = None,
    ) -> Grant:
        """Wait for a grant for one machine and return it: see :meth:`admit_together`."""
        need = Need(name, cpus, memory)
        grants = self.admit_together(
            [need], urgent=urgent, deadline=deadline, progress=progress, scope=scope
        )
        return grants[0]

    def admit_together(
        self,
        needs: Sequence[Need],
        *,
        urgent: bool = False,
        deadline: Deadline = NEVER,
        progress: Callable[[str], None] = lambda reason: None,
        scope: Scope | None = None,
    ) -> tuple[Grant, ...]:
        """Wait for a grant for each machine, all at once, and return them.

        Args:
            needs: The need of each machine; at least one.
            urgent: Whether processes that hold grants wait for the result, such as a state whose
                lock this process holds. The request then waits for memory only.
            deadline: The end of the wait; never by default, because machines of others may take long.
            progress: Called with the reason for the wait, as a clause, and again when it changes.
            scope: A failure scope; its failure ends the wait.

        Raises:
            HostError: The request can never be served: it exceeds the host, or the processes that
                hold the rest wait for this one. Or the folder cannot be used.
            WaitTimeoutError: The deadline passed; names the holders of the grants.
        """
        total = Need(
            ", ".join(need.name for need in needs),
            sum(need.cpus for need in needs),
            sum(need.memory for need in needs),
        )
        self._refuse_impossible(total)
        request: Claim | None = None
        reported = ""
        with contextlib.ExitStack() as asking:
            alarms = [] if scope is None else [asking.enter_context(scope.alarm())]
            while True:
                if scope is not None:
                    scope.check()
                with contextlib.ExitStack() as watching:
                    with self._board.gate(deadline):
                        now = self._board.look()
                        if request is None:
                            request = self._request(now, total, asking, urgent=urgent)
                            now = now.with_request(request)
                        elif request.turn and now.held(request.owner):
                            # Another thread of this process has a grant by now.
                            now = now.without_request(request)
                            request = self._board.promote(request)
                            now = now.with_request(request)
                            self._refuse_deadlock(now, request)
                        ahead = [claim for claim in now.waiting if place(claim) < place(request)]
                        if not ahead and self._fits(now, request):
                            grants = self._grant(now, request, needs)
                            # No process may see the request and its grants at the same time.
                            asking.close()
                            return grants
                        paths = self._awaited(now, request, ahead)
                        alive = []
                        for path in paths:
                            if (fd := watch(path)) is not None:
                                watching.callback(os.close, fd)
                                alive.append(fd)
                    if (reason := self._reason(now, request, ahead)) != reported:
                        progress(reason)
                        reported = reason
                    # A claim may have died since the board was read.
                    if len(alive) == len(paths) and not hung_up([*alive, *alarms], deadline):
                        raise WaitTimeoutError(
                            f"admission of {total.name}",
                            deadline,
                            evidence=reason,
                            hint="run fewer workers, or check the machines named there",
                        )

    def status(self, deadline: Deadline = NEVER) -> Occupancy:
        """Return all grants and requests.

        Raises:
            HostError: The folder cannot be used.
            WaitTimeoutError: The deadline passed.
        """
        with self._board.gate(deadline):
            return self._board.look()

    # --- in line ------------------------------------------------------------------------------

    def _request(
        self, now: Occupancy, total: Need, asking: contextlib.ExitStack, *, urgent: bool
    ) -> Claim:
        numbers = (claim.number for claim in (*now.granted, *now.waiting))
        request = Claim(
            number=max(numbers, default=0) + 1,
            turn=0 if urgent or now.held(owner()) else 1,
            owner=owner(),
            pid=os.getpid(),
            cpus=min(total.cpus, self.limits.cpus),
            memory=total.memory,
            name=total.name,
        )
        self._refuse_deadlock(now.with_request(request), request)
        asking.callback(os.close, self._board.publish(self._board.requests, request))
        return request

    def _awaited(self, now: Occupancy, request: Claim, ahead: Sequence[Claim]) -> list[Path]:
        """Return the claims whose end may move a request forward."""
        if not ahead:
            return [self._board.grants / claim.file for claim in now.granted]
        # Each request wakes the next one when it is served. A grant of the same process also changes
        # the place of this request.
        return [
            self._board.requests / claim.file
            for claim in ahead
            if claim is ahead[-1] or claim.owner == request.owner
        ]

    def _fits(self, now: Occupancy, request: Claim) -> bool:
        if now.memory + request.memory > self.limits.memory:
            return False
        if not request.turn:
            return True
        return milli(now.cpus) + milli(request.cpus) <= milli(self.limits.cpus)

    def _grant(self, now: Occupancy, request: Claim, needs: Sequence[Need]) -> tuple[Grant, ...]:
        free = max(0.0, self.limits.cpus - now.cpus)
        grants = []
        with contextlib.ExitStack() as undo:
            for turn, need in enumerate(needs):
                cpus = min(need.cpus, free)
                free -= cpus
                claim = Claim(
                    request.number, turn, owner(), os.getpid(), cpus, need.memory, need.name
                )
                fd = self._board.publish(self._board.grants, claim)
                grants.append(Grant(need.name, cpus, need.memory, fd))
                undo.callback(grants[-1].release)
            undo.pop_all()
        return tuple(grants)

    def _reason(self, now: Occupancy, request: Claim, ahead: Sequence[Claim]) -> str:
        reason = f"waiting for {format_size(request.memory)} and {_cpus(request.cpus)}"
        if ahead:
            reason += f" behind {_list(ahead[::-1])}"
        biggest = sorted(now.granted, key=lambda claim: (-claim.memory, claim.number))
        return (
            f"{reason}: {format_size(now.memory)} of {format_size(self.limits.memory)} and"
            f" {now.cpus:g} of {_cpus(self.limits.cpus)} are granted"
            + (f" to {_list(biggest)}" if biggest else "")
        )

    # --- refusals -----------------------------------------------------------------------------

    def _refuse_impossible(self, total: Need) -> None:
        if total.memory <= self.limits.memory:
            return
        room = self._room
        raise HostError(
            f"{total.name} needs {format_size(total.memory)} of memory, and this host carries"
            f" {format_size(self.limits.memory)}: {format_size(room.memory)} (limit: {room.limit})"
            f" less {format_size(room.memory - self.limits.memory)} for the host itself",
            hint="reduce the machine's memory, or raise the limit",
        )

    def _refuse_deadlock(self, now: Occupancy, request: Claim) -> None:
        """Refuse a request that would complete a cycle of processes that hold and wait."""
        held = now.held(request.owner)
        if not held or self._all_served(now) or not self._all_served(now.without_request(request)):
            return
        others = [claim for claim in now.waiting if claim.owner != request.owner]
        raise HostError(
            f"{request.name} would wait for ever for {format_size(request.memory)}: this host"
            f" carries {format_size(self.limits.memory)}, and this process itself holds"
            f" {_list(held)}" + (f", while others wait: {_list(others)}" if others else ""),
            hint="request the machines of one test together, or stop one before starting the next",
        )

    def _all_served(self, now: Occupancy) -> bool:
        """Whether every request will eventually be served.

        A process that does not wait will release its grants. A process that waits will release them
        when all its requests have been served, which happens in the order of the line.
        """
        held: dict[str, int] = {}
        for claim in now.granted:
            held[claim.owner] = held.get(claim.owner, 0) + claim.memory
        left = [claim.owner for claim in now.waiting]
        free = self.limits.memory - sum(held.get(process, 0) for process in set(left))
        for claim in now.waiting:
            if claim.memory > free:
                return False
            free -= claim.memory
            held[claim.owner] = held.get(claim.owner, 0) + claim.memory
            left.remove(claim.owner)
            if claim.owner not in left:
                free += held[claim.owner]
        return True


def _list(claims: Sequence[Claim]) -> str:
    text = ", ".join(map(str, claims[:_NAMED]))
    return text if len(claims) <= _NAMED else f"{text} and {len(claims) - _NAMED} more"


def _cpus(count: float) -> str:
    return f"{count:g} CPU{'' if count == 1 else 's'}"
