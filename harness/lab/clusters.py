"""How a lab starts the machines of a cluster: all of them, on a segment, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.catalog import Selection
from harness.cluster import Cluster, Provider, providers
from harness.errors import UsageError
from harness.host.scheduler import Turn
from harness.machine import Machine
from harness.machine.start import shares_ram
from harness.network import Segment
from harness.parallel import in_parallel
from harness.spec import MachineSpec
from harness.states import Snapshot

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
    services: Sequence[Service],
    seed: int,
    capture: bool,
    kind: type[Provider],
) -> Cluster:
    """Return a cluster to be formed, of one machine for each architecture: see :meth:`Lab.cluster`.

    Raises:
        UsageError: There is no machine.
    """
    if not arches:
        raise UsageError("a cluster has one machine at least")
    segment = lab.segment(seed=seed, capture=capture)
    nodes = Nodes(lab, segment, services)
    names = [f"node-{number}" for number in range(1, len(arches) + 1)]
    with lab.timeline.step(f"start {len(names)} machines"):
        machines = nodes.fork(names, arches)
    return assemble(lab, machines, nodes, kind(segment), segment)


def assemble(
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
    """

    def __init__(self, lab: Lab, segment: Segment, services: Sequence[Service]) -> None:
        self._lab = lab
        self._segment = segment
        self._services = services

    def fork(self, names: Sequence[str], arches: Sequence[str] = ()) -> list[Machine[Any]]:
        """Return machines at the state ``member``.

        Args:
            names: Their names.
            arches: The architecture of each; the one under test by default.
        """
        from harness.points import member

        lab = self._lab
        each = list(arches or [lab.image.arch] * len(names))
        labs = {arch: lab.with_image(_members_of(lab.image), arch) for arch in each}

        def start(missing: Sequence[str], saved: dict[str, Snapshot]) -> list[Machine[Any]]:
            if missing:
                arch, *rest = missing
                return labs[arch]._from(
                    member, lambda snapshot: start(rest, saved | {arch: snapshot})
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
