"""A cluster: machines on a segment, and the words that form it, break it and look at it.

::

    cluster = lab.cluster(3)
    cluster.form()
    with cluster.history(seed=7) as clients:
        clients.wait_acknowledged(50)
        lost = cluster.leader()
        lost.power_cut()
        clients.wait_acknowledged(50)
        cluster.power_on(lost)
        cluster.wait_healthy()

All machines are in one failure scope: a panic of one ends every wait on the others, unless the test
expects it (:meth:`Machine.expecting <harness.machine.Machine.expecting>`). The provider knows what an
etcd or a k3s is (:mod:`harness.cluster.provider`), and the lab makes the machines.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from harness.cluster.clients import Clients
from harness.cluster.history import History
from harness.cluster.provider import Member, MemberStore, Provider
from harness.deadline import Deadline, Limit, Scale
from harness.errors import (
    HarnessError,
    RollingUpgradeError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
)
from harness.evidence.timeline import Timeline
from harness.machine import Machine
from harness.network import Segment
from harness.network.segment import Fault
from harness.parallel import in_parallel
from harness.scope import Scope

_PACE: Final = 0.5
"""Seconds between two looks at a cluster: it has no event for "all are healthy"."""

_PREFIX: Final = "node-"


class Nodes(Protocol):
    """Makes the machines of a cluster; the lab's."""

    def fork(self, names: Sequence[str]) -> list[Machine[Any]]:
        """Return machines that are ready to become members, and are none yet."""


class Cluster:
    """Machines on a segment, with a provider.

    ``cluster["node-2"]`` is a machine by its name, ``for machine in cluster`` goes through all.
    Words that take machines take their names as well.

    Args:
        name: Its name, for people.
        machines: Its machines by name.
        provider: What Harness knows of this kind of cluster.
        segment: The Ethernet that the machines are on.
        scope: The failure scope that all machines are in.
        timeline: Gets the steps.
        folder: The folder for histories.
        nodes: Makes further machines.

    Attributes:
        name: Its name.
        provider: Its provider: ``cluster.provider.token(machine)``.
        segment: Its segment: ``cluster.segment.link("node-1", "node-2").impair(loss=0.1)``.
    """

    def __init__(
        self,
        name: str,
        machines: Mapping[str, Machine[Any]],
        *,
        provider: Provider,
        segment: Segment,
        scope: Scope,
        timeline: Timeline,
        folder: Path,
        nodes: Nodes,
    ) -> None:
        self.name = name
        self.provider = provider
        self.segment = segment
        self._machines = dict(machines)
        self._scope = scope
        self._timeline = timeline
        self._folder = folder
        self._nodes = nodes
        self._histories: Counter[str] = Counter()
        self._lock = threading.Lock()

    # --- its machines -------------------------------------------------------------------------

    @property
    def machines(self) -> dict[str, Machine[Any]]:
        """The machines by name, in the order in which they came; some may have ended."""
        with self._lock:
            return dict(self._machines)

    @property
    def segments(self) -> dict[str, Segment]:
        """The segments that the machines are on, by name."""
        return {self.segment.name: self.segment}

    def __getitem__(self, name: str) -> Machine[Any]:
        machines = self.machines
        if name not in machines:
            raise UnknownNameError("machine", name, machines)
        return machines[name]

    def __iter__(self) -> Iterator[Machine[Any]]:
        return iter(self.machines.values())

    def __len__(self) -> int:
        return len(self.machines)

    @property
    def running(self) -> list[Machine[Any]]:
        """The machines that run."""
        return [machine for machine in self if machine.running]

    def others(self, *machines: Machine[Any] | str) -> list[Machine[Any]]:
        """Return all machines but these."""
        names = {self._named(machine).name for machine in machines}
        return [machine for machine in self if machine.name not in names]

    def _named(self, machine: Machine[Any] | str) -> Machine[Any]:
        """Return the machine of this cluster with a name: it may have been powered on again since."""
        return self[machine if isinstance(machine, str) else machine.name]

    @property
    def _scale(self) -> Scale:
        """The scale of the slowest machine."""
        return max((machine.scale for machine in self), key=lambda scale: scale.factor)

    # --- forming ------------------------------------------------------------------------------

    def form(self, *, together: bool = False, discover: bool = False) -> None:
        """Form the cluster: the first machine begins it, the others join; all are healthy then.

        Args:
            together: The others join at the same time, and not one after the other.
            discover: They look for the cluster by themselves, and are not told a member's name.

        Raises:
            JoinRefusedError: A member was refused.
            HarnessError: The cluster does not form within its time.
        """
        first, *others = self
        with self._timeline.step(f"form {self.name} of {len(self)}", together=together):
            in_parallel(lambda machine: self.provider.prepare(machine, list(self)), list(self))
            self.provider.first(first)
            token = self.provider.token(first)
            via = None if discover else first

            def join(machine: Machine[Any]) -> None:
                self.provider.join(machine, via, token=token)

            if together:
                in_parallel(join, others)
            else:
                for machine in others:
                    join(machine)
            self.wait_healthy()

    def new(self, count: int = 1) -> list[Machine[Any]]:
        """Return further machines on the segment, prepared, that are no members yet."""
        with self._lock:
            used = set(self._machines)
            free = (f"{_PREFIX}{number}" for number in itertools.count(1))
            names = list(itertools.islice((name for name in free if name not in used), count))
        machines = self._nodes.fork(names)
        with self._lock:
            self._machines.update((machine.name, machine) for machine in machines)
        in_parallel(lambda machine: self.provider.prepare(machine, list(self)), machines)
        return machines

    def add(self, *, discover: bool = False) -> Machine[Any]:
        """Let a further machine join, and return it once it is a healthy member.

        Raises:
            JoinRefusedError: It was refused.
        """
        (machine,) = self.new()
        self.join(machine, discover=discover)
        return machine

    def join(self, machine: Machine[Any] | str, *, discover: bool = False) -> None:
        """Let a machine join that is no member: a new one, or one that was reset.

        Raises:
            JoinRefusedError: It was refused.
        """
        machine = self._named(machine)
        via = self._via(without=machine)
        with self._timeline.step(f"join {self.name}", machine=machine.name):
            token = self.provider.token(via)
            self.provider.join(machine, None if discover else via, token=token)
            self.wait_healthy(machine)

    def adopt(self, machine: Machine[Any]) -> None:
        """Take a machine in that was started on the segment by other means: it may join, or has.

        Raises:
            UsageError: There is one of that name.
        """
        with self._lock:
            if machine.name in self._machines:
                raise UsageError(f"{self.name} has a machine {machine.name} already")
            self._machines[machine.name] = machine

    def remove(self, machine: Machine[Any] | str) -> None:
        """Remove a member, dead or alive, and end its machine."""
        machine = self._named(machine)
        with self._timeline.step(f"leave {self.name}", machine=machine.name):
            self.provider.leave(machine.name, self._via(without=machine))
            machine.stop()
            with self._lock:
                del self._machines[machine.name]

    # --- power --------------------------------------------------------------------------------

    def power_cut(self, *machines: Machine[Any] | str) -> None:
        """Take the power away from machines at one moment; from all by default."""
        chosen = [self._named(machine) for machine in machines] or list(self)
        in_parallel(lambda machine: machine.power_cut(), chosen)

    def power_on(self, *machines: Machine[Any] | str) -> list[Machine[Any]]:
        """Start machines that have ended again, at the same time, and wait until their systems are up.

        ``cluster[name]`` is the new machine from then on.

        Args:
            *machines: The machines; all that have ended by default.
        """
        chosen = [self._named(machine) for machine in machines] or [
            machine for machine in self if not machine.running
        ]
        started = in_parallel(lambda machine: machine.power_on(), chosen, undo=Machine.stop)
        with self._lock:
            self._machines.update((machine.name, machine) for machine in started)
        return started

    # --- what it says of itself ---------------------------------------------------------------

    def members(self, via: Machine[Any] | str | None = None) -> list[Member]:
        """Return the members as one of them sees them; a healthy one by default."""
        machine = self._via() if via is None else self._named(via)
        return self.provider.members(machine)

    def healthy(self) -> list[Machine[Any]]:
        """Return the machines whose members serve writes and reads now."""
        running = self.running
        answers = in_parallel(self.provider.healthy, running)
        return [machine for machine, healthy in zip(running, answers, strict=True) if healthy]

    def wait_healthy(self, *machines: Machine[Any] | str, deadline: Limit = None) -> None:
        """Wait until members serve writes and reads at the same time.

        Args:
            *machines: The machines; all that run by default.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: Some do not; names them.
        """
        names = {self._named(machine).name for machine in machines or self.running}
        unhealthy = set(names)

        def look() -> bool:
            unhealthy.clear()
            unhealthy.update(names - {machine.name for machine in self.healthy()})
            return not unhealthy

        what = f"members of {self.name} to be healthy"
        with self._timeline.step(f"wait for {what}: {', '.join(sorted(names))}"):
            self._wait(
                look, self._scale.limit(deadline, 60.0), lambda: f"{what}: {_all(unhealthy)}"
            )

    def leader(self, via: Machine[Any] | str | None = None, deadline: Limit = None) -> Machine[Any]:
        """Return the machine of the leader, once the cluster has one and it runs.

        Args:
            via: The member whose view counts; any healthy one by default.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: There is none.
        """
        leaders: list[Machine[Any]] = []

        def look() -> bool:
            for machine in [self._named(via)] if via is not None else self.healthy():
                name = self.provider.leader(machine)
                if name is not None and name in self.machines and self[name].running:
                    leaders.append(self[name])
                    return True
            return False

        self._wait(look, self._scale.limit(deadline, 60.0), lambda: f"{self.name} to have a leader")
        return leaders[0]

    def followers(self) -> list[Machine[Any]]:
        """Return the machines that run and are not the leader's."""
        return [each for each in self.others(self.leader()) if each.running]

    def holders(self) -> list[Machine[Any]]:
        """Return the machines that have the virtual address now; one at most in a good cluster."""
        running = self.running
        answers = in_parallel(self.provider.holds, running)
        return [machine for machine, holds in zip(running, answers, strict=True) if holds]

    def wait_holder(self, *machines: Machine[Any] | str, deadline: Limit = None) -> Machine[Any]:
        """Wait until one machine has the virtual address, and return it.

        Args:
            *machines: It is one of these; any that runs by default.
            deadline: 30 s on a good host by default.

        Raises:
            WaitTimeoutError: None has it.
        """
        holders: list[Machine[Any]] = []

        def look() -> bool:
            chosen = [self._named(machine) for machine in machines] or self.running
            answers = in_parallel(self.provider.holds, chosen)
            holders[:] = [machine for machine, holds in zip(chosen, answers, strict=True) if holds]
            return bool(holders)

        what = f"a machine of {self.name} to have the virtual address"
        with self._timeline.step(f"wait for {what}"):
            self._wait(look, self._scale.limit(deadline, 30.0), lambda: what)
        return holders[0]

    @contextlib.contextmanager
    def watching_address(self) -> Iterator[AddressWatch]:
        """Watch in the block which machines have the virtual address."""
        watch = AddressWatch(self.holders)
        with watch:
            yield watch

    def _via(self, *, without: Machine[Any] | None = None) -> Machine[Any]:
        """Return a member that serves; waits for one."""
        serving: list[Machine[Any]] = []

        def look() -> bool:
            serving.extend(machine for machine in self.healthy() if machine is not without)
            return bool(serving)

        self._wait(look, self._scale.after(60.0), lambda: f"a member of {self.name} to serve")
        return serving[0]

    def _wait(self, look: Callable[[], bool], limit: Deadline, what: Callable[[], str]) -> None:
        """Look until it is so; a failure of the scope ends the wait at once."""
        with self._scope.alarm() as alarm:
            poll = select.poll()
            poll.register(alarm, 0)
            while True:
                self._scope.check()
                expired = limit.expired
                if look():
                    return
                if expired:
                    raise WaitTimeoutError(what(), limit, evidence=str(self._folder))
                poll.poll(_PACE * 1000)

    # --- faults -------------------------------------------------------------------------------

    def partition(
        self, *groups: Machine[Any] | str | Iterable[Machine[Any] | str], one_way: bool = False
    ) -> Fault:
        """Part groups of machines until the fault is healed: :meth:`Segment.partition`."""
        return self.segment.partition(*groups, one_way=one_way)

    # --- clients ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def history(self, *, seed: int = 0, check: bool = True, **options: Any) -> Iterator[Clients]:
        """Let clients write and read in the block; check what they saw at its end.

        The history is kept as ``history-SEED.jsonl`` in the evidence. A block that raises is not
        checked: its own error is the one to show.

        Args:
            seed: Decides what the clients do; another one for each history of a test.
            check: Whether to check it; ``clients.history`` can be examined afterwards.
            **options: Further arguments of :class:`~harness.cluster.Clients`.

        Raises:
            HistoryError: An acknowledged write was lost, a read was stale, or a key is not linearizable.
            HistoryUndecidedError: The search ended without an answer.
        """
        self._histories[str(seed)] += 1
        if self._histories[str(seed)] > 1:
            raise UsageError(
                f"two histories of {self.name} have the seed {seed}",
                hint="clients of one seed write the same values: give each history its own",
            )
        history = History(self._folder / f"history-{self.name}-{seed}.jsonl")
        with self._timeline.step(f"clients of {self.name}", seed=seed):
            # Another history's values are in the keys of that one.
            options.setdefault("keys", tuple(f"{seed}/{key}" for key in "abc"))
            with Clients(
                self._stores(), history, self._scope, seed=seed, scale=self._scale, **options
            ) as clients:
                yield clients
            if check:
                history.check()

    def _stores(self) -> list[MemberStore]:
        """Return the registers through each machine that runs now."""
        return [
            MemberStore(self.provider, functools.partial(self._at, machine.name))
            for machine in self.running
        ]

    def _at(self, name: str) -> Machine[Any]:
        """Return the machine of a member; of another one once it has left."""
        machines = self.machines
        return machines[name] if name in machines else next(iter(machines.values()))

    # --- upgrades -----------------------------------------------------------------------------

    def rolling_upgrade(
        self,
        source: str | Callable[[Machine[Any]], str],
        version: str,
        *,
        deadline: Limit = None,
    ) -> None:
        """Upgrade the members one by one, the leader last; each is healthy before the next begins.

        It stops at the first member that does not come to the version: the others serve on.

        Args:
            source: Where upgrades come from, as ``machine.os.upgrade`` takes it; or what returns it for
                a machine.
            version: The version that each has then.
            deadline: Of one machine: 400 s on a good host by default.

        Raises:
            RollingUpgradeError: A member did not come to the version; names it, and those that did.
        """
        leader = self.leader()
        upgraded: list[str] = []
        for machine in [*self.others(leader), leader]:
            limit = self._scale.limit(deadline, 400.0)
            with self._timeline.step(f"upgrade to {version}", machine=machine.name):
                try:
                    machine.os.upgrade(
                        source if isinstance(source, str) else source(machine), limit
                    )
                    machine.reboot(limit)
                    machine.os.wait_good(limit)
                    running = machine.os.version()
                    if running != version:
                        raise RollingUpgradeError(
                            f"{machine.name} runs version {running} after its upgrade to {version}"
                        )
                    self.wait_healthy(deadline=limit)
                except HarnessError as error:
                    raise RollingUpgradeError(
                        f"the rolling upgrade of {self.name} stopped at {machine.name}: {error.what}",
                        evidence=f"upgraded before: {', '.join(upgraded) or 'none'}",
                        hint=error.hint,
                    ) from error
            upgraded.append(machine.name)


class AddressWatch:
    """Watches which machines have the virtual address; a context manager.

    Two machines that are asked at the same time answer at slightly different times, so an address that
    moves between them may be seen on both once. Held twice is what two looks in a row have seen.

    Args:
        holders: Returns the machines that have it.

    Attributes:
        seen: Each change, in its order: the names of the machines that had it.
        held_twice: The names of machines that had it at the same time.

    Raises:
        HarnessError: At the end of the block: a machine could not be asked, so nobody watched.
    """

    def __init__(self, holders: Callable[[], list[Machine[Any]]]) -> None:
        self._holders = holders
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="virtual address", daemon=True)
        self.seen: list[tuple[str, ...]] = []
        self.held_twice: list[tuple[str, ...]] = []
        self._failure: HarnessError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        # The block's own error is the one to show.
        if self._failure is not None and error is None:
            raise self._failure

    def _watch(self) -> None:
        last: tuple[str, ...] = ()
        while not self._over.wait(_PACE):
            try:
                now = tuple(sorted(machine.name for machine in self._holders()))
            except HarnessError as error:
                self._failure = error
                return
            if now != last:
                self.seen.append(now)
            elif len(now) > 1 and now not in self.held_twice:
                self.held_twice.append(now)
            last = now


def _all(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


__all__ = ["Cluster", "Nodes"]
