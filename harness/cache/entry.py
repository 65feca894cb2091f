"""The parts of a cache: an entry in a listing, an entry in use, the report of a collection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

Say = Callable[[str], None]
"""Takes one line of progress, for a person."""


def quiet(line: str) -> None:
    """Drop a line of progress."""
    del line


class Manifest(Protocol):
    """The description that an entry contains."""

    @property
    def created(self) -> float:
        """The time when the entry was built, in seconds of the epoch."""

    @property
    def seconds(self) -> float:
        """The duration of the build."""


ManifestT = TypeVar("ManifestT", bound=Manifest)


class Status(StrEnum):
    """The status of an entry.

    An entry of another version of Harness is foreign: this version can remove it, but not use it.
    """

    READY = "ready"
    IN_USE = "in use"
    BUILDING = "building"
    INTERRUPTED = "interrupted"
    DAMAGED = "damaged"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Entry(Generic[ManifestT]):
    """An entry in a listing of the cache.

    Attributes:
        id: The name of its folder.
        path: Its folder.
        status: Its status.
        bytes: The space that it takes on disk.
        created: The time when it was built, in seconds of the epoch.
        used: The time of its last use, in seconds of the epoch.
        manifest: Its manifest; ``None`` if it is not complete, or the manifest cannot be read.
        why: The fault of a damaged entry; the reason for a foreign one.
    """

    id: str
    path: Path
    status: Status
    bytes: int
    created: float
    used: float
    manifest: ManifestT | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Collected(Generic[ManifestT]):
    """The report of a collection; of a dry run, the same collection in advance.

    Attributes:
        removed: The entries that were removed.
        in_use: The garbage that was kept because it is in use or being built.
        failed: An error message for each entry that could not be removed.
        bytes: The space on disk that was freed.
    """

    removed: tuple[Entry[ManifestT], ...]
    in_use: tuple[Entry[ManifestT], ...]
    failed: tuple[str, ...]
    bytes: int


class Lease(Generic[ManifestT]):
    """An entry in use: no process removes it until :meth:`close`, or until this process ends.

    A lease that is garbage collected without :meth:`close` keeps its entry in use.

    Attributes:
        entry: The name of its folder.
        folder: Its folder.
        manifest: Its manifest.
    """

    def __init__(self, entry: str, folder: Path, manifest: ManifestT, locks: ExitStack) -> None:
        self.entry = entry
        self.folder = folder
        self.manifest = manifest
        self._locks = locks

    def close(self) -> None:
        """End the use; a second call does nothing."""
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
