"""Who is granted what, and when: the rules, and the wait in line."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.admission.board import Board, Entry, Status, hung_up, milli, owner, place, watch
from harness.admission.size import Limits
from harness.deadline import NEVER, Deadline
from harness.errors import HostError, UsageError, WaitTimeoutError
from harness.host import Capacity
from harness.spec import format_size

_NAMED: Final = 5  # how many of others a message lists


@dataclass(frozen=True, slots=True)
class Need:
    """What a machine needs.

    Attributes:
        name: The machine's name.
        cpus: Virtual CPUs that it keeps busy. If it asks for more than there are, it gets all.
        memory: Bytes: see :func:`footprint`; less for a fork that shares its RAM.
    """

    name: str
    cpus: float
    memory: int

    def __post_init__(self) -> None:
        if not (self.cpus >= 0 and math.isfinite(self.cpus) and self.memory >= 0):
            raise UsageError(f"machine {self.name} cannot need {self.cpus} CPUs, {self.memory} B")


class Grant:
    """Leave to use CPUs and memory, until :meth:`release` or the end of a ``with`` block.

    It ends with the process at the latest; not when the object is forgotten.

    Attributes:
        name: The machine's name.
        cpus: Virtual CPUs it counts for; they may be fewer than were asked for.
        memory: Bytes.
    """

    __slots__ = ("_fd", "cpus", "memory", "name")

    def __init__(self, name: str, cpus: float, memory: int, fd: int) -> None:
        self.name = name
        self.cpus = cpus
        self.memory = memory
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor that keeps the grant; a child that inherits it keeps it as well.

        Raises:
            UsageError: if the grant was released.
        """
        if self._fd < 0:
            raise UsageError(f"the grant of machine {self.name} was released")
        return self._fd

    def release(self) -> None:
        """Give it back, after the machine's end; a second time does nothing.

        While a child still has it, it counts on, as this process'.
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

    - Memory is hard: the sum of all grants stays within :attr:`limits`. CPUs can be shared: a need is
      cut to what there is, and who holds a grant never waits for more CPUs.
    - First come, first served: nobody overtakes a big machine that waits. Only who holds a grant goes
      before those who hold none, since it is perhaps its memory that they wait for; and who is waited
      for by those who hold one, which is what ``urgent`` says.
    - Who holds a grant, asks for more, and would wait for ever for it, because those who hold the
      rest wait as well, is refused. Machines that a test needs together are best asked for together.

    A grant belongs to the process: its threads count as one.

    Args:
        root: The folder shared by all who share the host: see :func:`pool`; made when first used.
        room: What this process may use: see :func:`harness.host.capacity`.
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
    ) -> Grant:
        """Return a grant for one machine, waiting for it: see :meth:`admit_together`."""
        need = Need(name, cpus, memory)
        granted = self.admit_together([need], urgent=urgent, deadline=deadline, progress=progress)
        return granted[0]

    def admit_together(
        self,
        needs: Sequence[Need],
        *,
        urgent: bool = False,
        deadline: Deadline = NEVER,
        progress: Callable[[str], None] = lambda reason: None,
    ) -> tuple[Grant, ...]:
        """Return a grant for each machine, all at once, waiting for them.

        Args:
            needs: What each machine needs, one at least.
            urgent: Whether others who hold grants wait for what these machines make, as for a state
                of which one process has the lock: they wait for memory only, as who holds a grant.
            deadline: When to give up; never by default, for others' machines may take long.
            progress: Told why it waits, as a clause, and again when that changes.

        Raises:
            HostError: if it can never be had: it is more than the host carries, or is held by those
                who wait for what this process holds; or if the folder cannot be used.
            WaitTimeoutError: if it was not to be had until the deadline; says who has it.
        """
        asked = Need(
            ", ".join(need.name for need in needs),
            sum(need.cpus for need in needs),
            sum(need.memory for need in needs),
        )
        self._refuse_impossible(asked)
        request: Entry | None = None
        told = ""
        with contextlib.ExitStack() as asking:
            while True:
                with contextlib.ExitStack() as watching:
                    with self._board.gate(deadline):
                        now = self._board.look()
                        if request is None:
                            request = self._ask(now, asked, asking, urgent=urgent)
                            now = now.asking(request)
                        elif request.turn and now.held(request.owner):
                            # Another thread of this process was served meanwhile.
                            now = now.without(request)
                            request = self._board.promote(request)
                            now = now.asking(request)
                            self._refuse_deadlock(now, request)
                        ahead = [one for one in now.waiting if place(one) < place(request)]
                        if not ahead and self._fits(now, request):
                            grants = self._grant(now, request, needs)
                            # Nobody must see the request beside what it was granted.
                            asking.close()
                            return grants
                        paths = self._awaited(now, request, ahead)
                        alive = []
                        for path in paths:
                            if (fd := watch(path)) is not None:
                                watching.callback(os.close, fd)
                                alive.append(fd)
                    if (reason := self._reason(now, request, ahead)) != told:
                        progress(reason)
                        told = reason
                    # One may have died since it was looked at.
                    if len(alive) == len(paths) and not hung_up(alive, deadline):
                        raise WaitTimeoutError(
                            f"admission of {asked.name}",
                            deadline.seconds,
                            evidence=reason,
                            hint="run fewer workers, or see what the machines named there do",
                        )

    def status(self, deadline: Deadline = NEVER) -> Status:
        """Return who has what and who waits.

        Raises:
            HostError: if the folder cannot be used.
            WaitTimeoutError: at the deadline.
        """
        with self._board.gate(deadline):
            return self._board.look()

    # --- in line ------------------------------------------------------------------------------

    def _ask(
        self, now: Status, asked: Need, asking: contextlib.ExitStack, *, urgent: bool
    ) -> Entry:
        numbers = (entry.number for entry in (*now.granted, *now.waiting))
        request = Entry(
            number=max(numbers, default=0) + 1,
            turn=0 if urgent or now.held(owner()) else 1,
            owner=owner(),
            pid=os.getpid(),
            cpus=min(asked.cpus, self.limits.cpus),
            memory=asked.memory,
            name=asked.name,
        )
        self._refuse_deadlock(now.asking(request), request)
        asking.callback(os.close, self._board.publish(self._board.requests, request))
        return request

    def _awaited(self, now: Status, request: Entry, ahead: Sequence[Entry]) -> list[Path]:
        """Return the entries whose end may bring a request forward."""
        if not ahead:
            return [self._board.grants / entry.file for entry in now.granted]
        # The next ahead wakes who is behind it when it is served. One of the same process that is
        # served gives the others of that process another place.
        return [
            self._board.requests / entry.file
            for entry in ahead
            if entry is ahead[-1] or entry.owner == request.owner
        ]

    def _fits(self, now: Status, request: Entry) -> bool:
        if now.memory + request.memory > self.limits.memory:
            return False
        if not request.turn:
            return True
        return milli(now.cpus) + milli(request.cpus) <= milli(self.limits.cpus)

    def _grant(self, now: Status, request: Entry, needs: Sequence[Need]) -> tuple[Grant, ...]:
        free = max(0.0, self.limits.cpus - now.cpus)
        grants = []
        with contextlib.ExitStack() as undo:
            for turn, need in enumerate(needs):
                cpus = min(need.cpus, free)
                free -= cpus
                entry = Entry(
                    request.number, turn, owner(), os.getpid(), cpus, need.memory, need.name
                )
                fd = self._board.publish(self._board.grants, entry)
                grants.append(Grant(need.name, cpus, need.memory, fd))
                undo.callback(grants[-1].release)
            undo.pop_all()
        return tuple(grants)

    def _reason(self, now: Status, request: Entry, ahead: Sequence[Entry]) -> str:
        reason = f"waiting for {format_size(request.memory)} and {_cpus(request.cpus)}"
        if ahead:
            reason += f" behind {_list(ahead[::-1])}"
        biggest = sorted(now.granted, key=lambda entry: (-entry.memory, entry.number))
        return (
            f"{reason}: {format_size(now.memory)} of {format_size(self.limits.memory)} and"
            f" {now.cpus:g} of {_cpus(self.limits.cpus)} are granted"
            + (f" to {_list(biggest)}" if biggest else "")
        )

    # --- refusals -----------------------------------------------------------------------------

    def _refuse_impossible(self, asked: Need) -> None:
        if asked.memory <= self.limits.memory:
            return
        room = self._room
        raise HostError(
            f"{asked.name} needs {format_size(asked.memory)} of memory, and this host carries"
            f" {format_size(self.limits.memory)}: {format_size(room.memory)} (limit: {room.limit})"
            f" less {format_size(room.memory - self.limits.memory)} for itself",
            hint="give the machine less memory, or raise the limit",
        )

    def _refuse_deadlock(self, now: Status, request: Entry) -> None:
        """Refuse a request that closes a circle of those who hold and wait."""
        held = now.held(request.owner)
        if not held or self._all_served(now) or not self._all_served(now.without(request)):
            return
        others = [entry for entry in now.waiting if entry.owner != request.owner]
        raise HostError(
            f"{request.name} would wait for ever for {format_size(request.memory)}: this host"
            f" carries {format_size(self.limits.memory)}, and this process itself holds"
            f" {_list(held)}" + (f", while others wait: {_list(others)}" if others else ""),
            hint="ask for machines of one test together, or stop one before starting the next",
        )

    def _all_served(self, now: Status) -> bool:
        """Whether every request will be served some day.

        Who does not wait will release what it holds. Who waits will do so when all that it waits for
        was served, and that happens in the order of the line.
        """
        held: dict[str, int] = {}
        for entry in now.granted:
            held[entry.owner] = held.get(entry.owner, 0) + entry.memory
        left = [entry.owner for entry in now.waiting]
        free = self.limits.memory - sum(held.get(each, 0) for each in set(left))
        for entry in now.waiting:
            if entry.memory > free:
                return False
            free -= entry.memory
            held[entry.owner] = held.get(entry.owner, 0) + entry.memory
            left.remove(entry.owner)
            if entry.owner not in left:
                free += held[entry.owner]
        return True


def _list(entries: Sequence[Entry]) -> str:
    text = ", ".join(map(str, entries[:_NAMED]))
    return text if len(entries) <= _NAMED else f"{text} and {len(entries) - _NAMED} more"


def _cpus(count: float) -> str:
    return f"{count:g} CPU{'' if count == 1 else 's'}"
