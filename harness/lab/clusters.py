"""How a lab starts the machines of a cluster: all of them, on a segment, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.catalog import Selection
from harness.cluster import Cluster, Provider, providers
from harness.errors import UsageError
from harness.host.scheduler import Turn
from harness.machine import Machine
from harness.machine.start import shares_ram
from harness.network import Segment, SegmentState
from harness.parallel import in_parallel
from harness.spec import LAN, MachineSpec
from harness.states import Group, GroupState, Snapshot, State, restore_group, save_group
from harness.states.group import Fork
from harness.states.together import Together

if TYPE_CHECKING:
    from harness.lab.lab import Lab, Service


@dataclass(frozen=True, slots=True)
class Start:
    """A machine to start from a snapshot.

    Attributes:
        spec: Its spec.
        image: Its image.
        origin: The snapshot.
    """

    spec: MachineSpec
    image: Selection
    origin: Snapshot


def start_together(
    lab: Lab,
    starts: Sequence[Start],
    *,
    services: Sequence[Service],
    segments: Sequence[Segment],
    working_set: int | None = None,
) -> list[Machine[Any]]:
    """Start machines in parallel once the host has room for all; end the others if one fails.

    Raises:
        HostError: The host can never carry them.
        StateError, QemuStartError: One does not start.
    """
    with contextlib.ExitStack() as undo:
        turns = lab._admit(
            [start.spec for start in starts],
            forks=all(shares_ram(start.origin, saveable=lab._building) for start in starts),
            working_set=working_set,
        )
        for turn in turns:
            undo.callback(turn.release)

        def launch(start: Start, turn: Turn) -> Machine[Any]:
            return lab._launch_fork(
                start.spec, start.image, start.origin, services, segments, turn=turn
            )

        machines = in_parallel(launch, starts, turns, undo=Machine.stop)
        undo.pop_all()
    return machines


def start_cluster(
    lab: Lab,
    arches: Sequence[str],
    *,
    kind: type[Provider],
    services: Sequence[Service] = (),
    seed: int = 0,
    capture: bool = True,
    member: State | None = None,
) -> Cluster:
    """Return a cluster to be formed, of one machine for each architecture: see :meth:`Lab.cluster`.

    Args:
        lab: The lab.
        arches: The architecture of each machine.
        kind: The provider.
        services: As for :meth:`Lab.cluster`.
        seed: As for :meth:`Lab.cluster`.
        capture: As for :meth:`Lab.cluster`.
        member: The state that the machines are forks of; ``points.member`` by default.

    Raises:
        UsageError: There is no machine.
    """
    from harness import points

    member = member or points.member
    if not arches:
        raise UsageError("a cluster has one machine at least")
    segment = lab.segment(seed=seed, capture=capture)
    nodes = Nodes(lab, segment, services, member)
    names = [f"node-{number}" for number in range(1, len(arches) + 1)]
    with lab.timeline.step(f"start {len(names)} machines"):
        machines = nodes.fork(names, arches)
    return _assemble(lab, machines, nodes, kind(segment), segment)


def fork_cluster(
    lab: Lab, state: GroupState, *, services: Sequence[Service] = (), seed: int | None = None
) -> Cluster:
    """Return the cluster of a state, which goes on: see :meth:`Lab.fork_cluster`.

    Raises:
        UsageError: It is the state of a single machine.
    """
    if not isinstance(state, GroupState):
        raise UsageError(
            f"{state!r} is not the state of a cluster",
            hint="pass one of @state(machines=N), such as points.cluster_3",
        )
    here = lab.with_image(_members_of(lab.image))
    if lab._parts.options.fresh:
        return reach_cluster(here, state, services=services, seed=seed)
    return here._with_lease(
        state, lambda lease: _restore(here, lease.group, services, _origin(state), seed)
    )


def reach_cluster(
    lab: Lab, state: GroupState, *, services: Sequence[Service] = (), seed: int | None = None
) -> Cluster:
    """Do the steps of the state of a cluster, and return its cluster.

    Args:
        lab: The lab, with the image of the members under test.
        state: The state.
        services: Servers that each machine can reach.
        seed: Decides what links do to frames; 0 by default.

    Raises:
        UsageError: The state has no parent, or its steps return no cluster.
    """
    if state.parent is None:
        raise UsageError(
            f"the state {state.name} of a cluster has no parent",
            hint="@state(parent=points.member, machines=3)",
        )
    if isinstance(state.parent, GroupState):
        before = fork_cluster(lab, state.parent, services=services, seed=seed)
    else:
        before = start_cluster(
            lab,
            [lab.image.arch] * state.machines,
            services=services,
            seed=seed or 0,
            kind=providers.of_image(lab.image),
            member=state.parent,
        )
    with lab.timeline.step(f"steps of state {state.name}"):
        cluster = state.steps(lab, before)
    if not isinstance(cluster, Cluster):
        raise UsageError(
            f"the steps of state {state.name} returned {cluster!r}",
            hint="return the cluster that is to be saved",
        )
    return cluster


def save_cluster(cluster: Cluster, folder: Path, *, inside: Path) -> Group:
    """Save the machines of a cluster that run, at rest, and its segments; they end."""
    in_parallel(lambda member: member.wait_for_rest(), cluster.running)
    return save_group(cluster.running, cluster.segments.values(), folder, final=True, inside=inside)


def _origin(state: State) -> State:
    """Return the state that further machines of a cluster are forks of."""
    while isinstance(state, GroupState) and state.parent is not None:
        state = state.parent
    return state


def _restore(
    lab: Lab, group: Group, services: Sequence[Service], member: State, seed: int | None
) -> Cluster:
    """Return the cluster of a group, which goes on."""
    fork = fork_group(lab, group, services=services, seed=seed)
    segment = fork.segments[LAN]
    nodes = Nodes(lab, segment, services, member)
    kind = providers.of_image(lab.image)
    return _assemble(lab, list(fork.machines.values()), nodes, kind(segment), segment)


def fork_group(
    lab: Lab, group: Group, *, services: Sequence[Service] = (), seed: int | None = None
) -> Fork[Machine[Any], Segment]:
    """Return machines and segments that go on from a group, once the host has room for all.

    Args:
        lab: The lab, with the image of the machines under test; they end with it.
        group: The group.
        services: Servers that each machine can reach.
        seed: Decides what links do to frames from now on; the saved seed by default.

    Raises:
        HostError: The host can never carry them.
        StateError, QemuStartError: One does not start.
    """
    specs = group.specs()
    with contextlib.ExitStack() as undo:
        turns = dict(
            zip(
                specs,
                lab._admit(
                    list(specs.values()),
                    forks=all(
                        shares_ram(saved, saveable=lab._building)
                        for saved in group.snapshots.values()
                    ),
                    working_set=None,
                ),
                strict=True,
            )
        )
        for turn in turns.values():
            undo.callback(turn.release)

        def launch(
            saved: Snapshot, spec: MachineSpec, segments: Mapping[str, Segment], together: Together
        ) -> Machine[Any]:
            return lab._launch_fork(
                spec,
                lab.image,
                saved,
                services,
                tuple(segments.values()),
                turn=turns[spec.name],
                together=together,
            )

        def start_segment(name: str, state: SegmentState) -> Segment:
            return lab.segment(name, state=state if seed is None else state.with_seed(seed))

        with lab.timeline.step(f"fork a cluster of {len(specs)}", origin=str(group.folder)):
            fork = restore_group(group, launch=launch, start_segment=start_segment)
        undo.pop_all()
    return fork


def _assemble(
    lab: Lab,
    machines: Sequence[Machine[Any]],
    nodes: Nodes,
    provider: Provider,
    segment: Segment,
) -> Cluster:
    """Return the cluster of machines that run."""
    return Cluster(
        "cluster",
        {machine.name: machine for machine in machines},
        provider=provider,
        segment=segment,
        scope=lab.scope,
        timeline=lab.timeline,
        folder=lab.folder,
        nodes=nodes,
    )


class Nodes:
    """Forks further machines for a cluster: :class:`harness.cluster.cluster.Nodes`.

    Args:
        lab: The lab.
        segment: The segment that they are on.
        services: Servers that they can reach.
        member: The state that they are forks of.
    """

    def __init__(
        self, lab: Lab, segment: Segment, services: Sequence[Service], member: State
    ) -> None:
        self._member = member
        self._lab = lab
        self._segment = segment
        self._services = services

    def fork(self, names: Sequence[str], arches: Sequence[str] = ()) -> list[Machine[Any]]:
        """Return machines that go on from the state.

        Args:
            names: Their names.
            arches: The architecture of each; the one under test by default.
        """
        lab = self._lab
        each = list(arches or [lab.image.arch] * len(names))
        labs = {arch: lab.with_image(_members_of(lab.image), arch) for arch in each}

        def start(missing: Sequence[str], saved: dict[str, Snapshot]) -> list[Machine[Any]]:
            if missing:
                arch, *rest = missing
                return labs[arch]._with_snapshot(
                    self._member, lambda snapshot: start(rest, saved | {arch: snapshot})
                )
            starts = [
                Start(saved[arch].fork_spec(name), labs[arch].image, saved[arch])
                for name, arch in zip(names, each, strict=True)
            ]
            return start_together(lab, starts, services=self._services, segments=[self._segment])

        return start(list(labs), {})


def _members_of(image: Selection) -> str:
    """Return the reference to the variant of an image whose machines form clusters."""
    providers.of_image(image)
    assert image.cluster is not None
    return f"{image.name}/{image.cluster.variant}:{image.version}"
