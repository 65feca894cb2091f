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
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

from harness import jsonfile
from harness.cache.space import explained
from harness.errors import SegmentError, StateError, UsageError
from harness.network import SegmentState
from harness.network.segment import FORMAT as SEGMENT_FORMAT
from harness.parallel import in_parallel
from harness.spec import MachineSpec
from harness.states.save import Save
from harness.states.snapshot import FORMAT as SNAPSHOT_FORMAT
from harness.states.snapshot import MANIFEST as SNAPSHOT
from harness.states.snapshot import Seal, Snapshot, shape
from harness.states.together import Together

if TYPE_CHECKING:
    from pydantic import ConfigDict

MANIFEST: Final = "group.json"
MACHINES: Final = "machines"
SEGMENTS: Final = "segments"


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

    def standing_still(self) -> contextlib.AbstractContextManager[None]:
        """Move no frames in the block; go on after it, unless the segment was paused before."""

    def save(self) -> SegmentState:
        """Return its state."""


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
        path = folder / MANIFEST
        try:
            record = jsonfile.load(path, _Record, format=FORMAT)
            segments = {
                name: SegmentState.read(folder / SEGMENTS / name) for name in record.segments
            }
        except jsonfile.OtherFormatError as error:
            raise StateError(f"{path} is of another version of Harness") from error
        except (OSError, ValueError) as error:
            raise StateError(f"{path} is missing or damaged: {error}") from error
        except SegmentError as error:
            raise StateError(error.what, evidence=error.evidence) from error
        snapshots = {name: Snapshot.read(folder / MACHINES / name) for name in record.machines}
        return cls(folder, record.saved, snapshots, segments, record.files)

    def write(self) -> Group:
        """Write the segments and the manifest, synced to the disk; return the sealed group.

        Raises:
            OSError: A file cannot be written.
        """
        for name, state in self.segments.items():
            (self.folder / SEGMENTS / name).mkdir(parents=True)
            state.write(self.folder / SEGMENTS / name)
        sealed = [self.folder / MACHINES / name / SNAPSHOT for name in self.snapshots]
        sealed += sorted(path for path in (self.folder / SEGMENTS).rglob("*") if path.is_file())
        files = tuple((str(path.relative_to(self.folder)), Seal.of(path)) for path in sealed)
        record = _Record(tuple(self.snapshots), tuple(self.segments), self.saved, files)
        jsonfile.save(self.folder / MANIFEST, record, format=FORMAT)
        return replace(self, files=files)

    def faults(self) -> list[str]:
        """Return how the files differ from their seals, a sentence each; this reads the small files."""
        return self.own_faults() + [
            fault for each in self.snapshots.values() for fault in each.faults()
        ]

    def own_faults(self) -> list[str]:
        """Return the faults of the segments and manifests; each machine has its own faults as well."""
        checks = [(self.folder / name, seal) for name, seal in self.files]
        return [fault for path, seal in checks if (fault := seal.fault(path)) is not None]


@dataclass(frozen=True, slots=True)
class _Record:
    """The manifest of a group: the names, and the rest as :class:`Group` has it."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    machines: tuple[str, ...]
    segments: tuple[str, ...]
    saved: float
    files: tuple[tuple[str, Seal], ...]


FORMAT: Final = f"{SNAPSHOT_FORMAT}.{SEGMENT_FORMAT}.{shape(_Record)}"
"""The format of a group; every state is built again when it changes."""


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
    members, ethernets = list(machines), list(segments)
    for what, names in (
        ("machines", [each.name for each in members]),
        ("segments", [each.name for each in ethernets]),
    ):
        if len(set(names)) < len(names):
            raise UsageError(f"two {what} of a group have one name: {', '.join(sorted(names))}")
    if not members:
        raise UsageError("a group has one machine at least")
    with contextlib.ExitStack() as undo:
        with explained(folder, "saving machines"):
            folder.mkdir(parents=True)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        # Machines run on before segments do. A machine that saves may wait for its console, so segments
        # are paused when all are ready: no guest runs on a paused segment for long.
        with contextlib.ExitStack() as moving, contextlib.ExitStack() as running:
            saves = [
                running.enter_context(
                    each.saving(folder / MACHINES / each.name, final=final, inside=inside)
                )
                for each in members
            ]
            for ethernet in ethernets:
                moving.enter_context(ethernet.standing_still())
            for stands_still in [save.stop() for save in saves]:
                stands_still()
            group = Group(folder, time.time(), {}, {each.name: each.save() for each in ethernets})
            in_parallel(lambda save: save.write(), saves)
            # All can be saved; from here on, machines may end.
            snapshots = in_parallel(lambda save: save.finish(), saves)
        names = [each.name for each in members]
        group = replace(group, snapshots=dict(zip(names, snapshots, strict=True)))
        with explained(folder, "saving machines"):
            group = group.write()
        undo.pop_all()
    return group


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
    if faults := group.own_faults():
        raise StateError("the saved machines are damaged", evidence="\n".join(faults))
    with contextlib.ExitStack() as undo:
        segments: dict[str, SegmentT] = {}
        for name, state in group.segments.items():
            segments[name] = start_segment(name, state)
            undo.callback(segments[name].close)

        def resume() -> None:
            for segment in segments.values():
                segment.resume()

        together = Together(len(group.snapshots), resume)
        failures: list[BaseException] = []

        def start(snapshot: Snapshot) -> MachineT:
            try:
                machine = launch(snapshot, snapshot.fork_spec(), segments, together)
                if not together.begun:
                    machine.stop()
                    raise UsageError(
                        "a member runs before the others: launch it with Setup.together"
                    )
            except threading.BrokenBarrierError:
                raise  # Another one fails, for a reason of its own.
            except BaseException as error:
                failures.append(error)
                together.fail()
                raise
            return machine

        try:
            machines = in_parallel(start, group.snapshots.values(), undo=lambda each: each.stop())
        except threading.BrokenBarrierError:
            raise failures[0] from None
        undo.pop_all()
    return Fork(dict(zip(group.snapshots, machines, strict=True)), segments)


def read_saved(folder: Path) -> Snapshot | Group:
    """Return what a folder holds: a group, or one machine.

    Raises:
        StateError: Neither, or it is damaged.
    """
    if (folder / MANIFEST).exists():
        return Group.read(folder)
    return Snapshot.read(folder)
