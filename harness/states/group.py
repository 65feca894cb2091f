"""A group: machines that were stopped at one moment, saved with the segments between them.

::

    group = save_group(machines, [segment], folder, final=True)
    ...
    group = Group.read(folder)
    fork = restore_group(group, launch=launch, start_segment=start_segment)
    fork.machines["node-1"], fork.segments["lan"]

The folder of a group::

    machines/NAME/       a snapshot: see :mod:`harness.states.snapshot`
    segments/NAME/       a segment with its frames in flight: see :class:`~harness.network.SegmentState`
    group.json           the names, and the seals of all manifests and segments; written last

The members of a fork keep names and MAC addresses: they are the same machines again, on a segment of
their own. They are loaded one by one, start to run together, and only then does the segment move frames
again; so no member sees the others missing. Clocks are set to one time of the host.

A group needs no lab. The caller launches each machine::

    def launch(snapshot, spec, segments, together):
        setup = Setup(..., origin=snapshot, segments=segments, together=together)
        return harness.machine.launch(spec, setup)

    def start_segment(name, state):
        return Segment(name, folder=..., state=state)

Launched members wait for each other. So the host admits all members before :func:`restore_group`, and
``launch`` waits for nothing that another member holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from harness.network import SegmentState
from harness.spec import MachineSpec
from harness.states.save import Save
from harness.states.snapshot import Seal, Snapshot
from harness.states.together import Together

MANIFEST: Final = "group.json"


class Member(Protocol):
    """A machine that can be saved; :class:`~harness.machine.Machine` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    def saving(
        self, folder: Path, *, final: bool = False, inside: Path | None = None
    ) -> contextlib.AbstractContextManager[Save]:
        """Begin to save it into a folder; it runs on at the end of the block if it ran before."""


class Ethernet(Protocol):
    """A segment; :class:`~harness.network.Segment` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    def pause(self) -> None:
        """Stop moving frames."""

    def resume(self) -> None:
        """Go on."""

    def save(self) -> SegmentState:
        """Return its state; it stays paused."""


class Ends(Protocol):
    """A machine that ends."""

    def stop(self) -> None:
        """End it at once."""


class Closes(Protocol):
    """A segment that ends."""

    def resume(self) -> None:
        """Go on."""

    def close(self) -> None:
        """End it."""


MachineT = TypeVar("MachineT", bound=Ends)
SegmentT = TypeVar("SegmentT", bound=Closes)


@dataclass(frozen=True, slots=True)
class Group:
    """Saved machines and segments.

    Attributes:
        folder: The folder of its files.
        saved: The time when the machines were stopped, in seconds of the epoch.
        snapshots: The saved machines by name, in their order.
        segments: The saved segments by name.
        files: The seals of manifests and segments, by path below the folder.
    """

    folder: Path
    saved: float
    snapshots: Mapping[str, Snapshot]
    segments: Mapping[str, SegmentState]
    files: tuple[tuple[str, Seal], ...] = ()

    @property
    def cold(self) -> str:
        """Why it has no RAM: empty, since a group that cannot be saved hot is not saved."""
        return ""

    @property
    def machines(self) -> tuple[str, ...]:
        """The names of the machines."""
        return tuple(self.snapshots)

    def specs(self) -> dict[str, MachineSpec]:
        """Return the specs of a fork's machines by name, for admission: names and MACs are kept."""
        return {name: snapshot.fork_spec() for name, snapshot in self.snapshots.items()}

    @classmethod
    def read(cls, folder: Path) -> Group:
        """Return the group in a folder.

        Raises:
            StateError: A manifest is missing, damaged, or of another version of Harness.
        """
        raise NotImplementedError

    def faults(self) -> list[str]:
        """Return how the files differ from their seals, a sentence each."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Fork(Generic[MachineT, SegmentT]):
    """A fork of a group.

    Attributes:
        machines: The machines by name, in the order of the group.
        segments: The segments by name.
    """

    machines: Mapping[str, MachineT]
    segments: Mapping[str, SegmentT]


def save_group(
    machines: Iterable[Member],
    segments: Iterable[Ethernet],
    folder: Path,
    *,
    final: bool = False,
    inside: Path | None = None,
) -> Group:
    """Save machines and segments as they are at one moment.

    All stand still meanwhile, then run on, unless ``final`` or they were paused before. If one cannot be
    saved, nothing is left of the folder, and all run on, with ``final`` as well unless machines have
    been ended already.

    Args:
        machines: The machines; each was started with ``saveable``.
        segments: The segments that they are on.
        folder: A new folder.
        final: End the machines; their disks are moved then, not copied.
        inside: A folder below which bases of disks stay where they are; others are copied.

    Raises:
        UsageError: A machine was not started with ``saveable``; or a name is there twice.
        SnapshotError: A machine cannot be saved while it runs; names it and the device.
        DiskFullError, StoreError: The folder cannot be written.
    """
    raise NotImplementedError


def restore_group(
    group: Group,
    *,
    launch: Callable[[Snapshot, MachineSpec, Mapping[str, SegmentT], Together], MachineT],
    start_segment: Callable[[str, SegmentState], SegmentT],
) -> Fork[MachineT, SegmentT]:
    """Start a fork of a group; if one member does not start, the others end and nothing is left.

    Args:
        group: The group.
        launch: Starts a machine from its snapshot, by the spec given, on the segments given, with
            ``Setup.together``; called in a thread for each machine, all at the same time.
        start_segment: Starts a segment from its state; it is paused, and resumed here.

    Raises:
        StateError, QemuStartError, HarnessError: The first error of a member.
    """
    raise NotImplementedError


def read_saved(folder: Path) -> Snapshot | Group:
    """Return what a folder holds: a group, or one machine.

    Raises:
        StateError: Neither, or it is damaged.
    """
    if (folder / MANIFEST).exists():
        return Group.read(folder)
    return Snapshot.read(folder)
