"""What an entry of the cache is: what is wanted, its key, its manifest, its use."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from harness import jsonfile
from harness.errors import StoreError
from harness.store.locks import Lock

FORMAT: Final = 1
"""Of the cache's layout and keys; a new number makes all entries anew."""

MANIFEST: Final = "manifest.json"

_KEY_LENGTH: Final = 20
"""Hexadecimal digits of a key in a folder's name: 80 bits, enough for what one host holds."""

_DESCRIPTION: Final = "image.yaml"
_SKIPPED: Final = frozenset({"__pycache__", ".git"})


class Source(Protocol):
    """Where one artifact comes from: the build, or an address with its digest."""

    @property
    def file(self) -> str:
        """The file's name, as a path below the entry's folder."""

    @property
    def url(self) -> str | None:
        """Where it is fetched from; ``None`` if the build script makes it."""

    @property
    def sha256(self) -> str | None:
        """The digest of what is fetched."""


class Wanted(Protocol):
    """What the store can make; a ``Selection`` of the catalogue is one."""

    @property
    def name(self) -> str:
        """The image's name."""

    @property
    def arch(self) -> str:
        """The arch it is for."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def variant(self) -> str:
        """Its variant."""

    @property
    def folder(self) -> Path:
        """The folder that the inputs are in."""

    @property
    def script(self) -> Path | None:
        """The build script; ``None`` if all is fetched."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """What decides what the build makes, as paths from the folder."""

    @property
    def artifacts(self) -> Mapping[str, Source]:
        """The files by name."""


def digest_inputs(wanted: Wanted) -> str:
    """Return the key of what is wanted: a SHA-256 over all that decides what it is.

    That is arch, version and variant, the names and digests of the artifacts, and of each input its
    path, content and whether it is executable, which is what git keeps of a mode. An address does
    not count: a digest says what is there. ``image.yaml`` counts only where an input names it.

    Raises:
        StoreError: if an input cannot be read.
    """
    facts: list[Any] = [FORMAT, wanted.name, wanted.arch, wanted.version, wanted.variant]
    for name, source in sorted(wanted.artifacts.items()):
        facts.append([name, source.file, source.sha256])
    if wanted.script is not None:
        facts.append(["script", os.path.relpath(wanted.script, wanted.folder)])
        facts.append(_fact(wanted.script, "script"))
        try:
            for given in sorted(set(wanted.inputs)):
                for name, path in _files(wanted.folder / given, given):
                    facts.append(_fact(path, name))
        except OSError as error:
            raise StoreError(
                f"an input of {wanted.name} cannot be read: {error}",
                hint="see build.inputs in its image.yaml",
            ) from error
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _files(path: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield each file at or below ``path``, in an order that no file system decides."""
    if path.is_symlink() or not path.is_dir():
        yield name, path
        return
    yield f"{name}/", path
    for child in sorted(path.iterdir()):
        own = name == "." and child.name == _DESCRIPTION
        if child.name in _SKIPPED or child.suffix == ".pyc" or own:
            continue
        yield from _files(child, f"{name}/{child.name}")


def _fact(path: Path, name: str) -> list[Any]:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return [name, "link", str(path.readlink())]
    if stat.S_ISDIR(status.st_mode):
        return [name, "folder"]
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is an input and neither file, folder nor link")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [name, "program" if status.st_mode & stat.S_IXUSR else "file", digest]


def entry_id(wanted: Wanted, key: str) -> str:
    """Return the name of an entry's folder."""
    label = f"{wanted.name}-{wanted.variant}-{wanted.version}-{wanted.arch}"
    return f"{label}-{key[:_KEY_LENGTH]}"


@dataclass(frozen=True, slots=True)
class File:
    """What a manifest says of one artifact: its path below the entry, digest and bytes."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an entry says of itself.

    Attributes:
        name: The image's name.
        arch: Its arch.
        version: Its version.
        variant: Its variant.
        key: The digest of all inputs.
        created: When it was made, in seconds of the epoch.
        seconds: How long that took.
        artifacts: Its files; none while it is being made.
    """

    name: str
    arch: str
    version: str
    variant: str
    key: str
    created: float
    seconds: float
    artifacts: Mapping[str, File]

    def write(self, folder: Path) -> None:
        """Write it into an entry's folder, down to the disk."""
        data = {
            "format": FORMAT,
            "name": self.name,
            "arch": self.arch,
            "version": self.version,
            "variant": self.variant,
            "key": self.key,
            "created": self.created,
            "seconds": self.seconds,
            "artifacts": {
                name: {"file": file.file, "sha256": file.sha256, "size": file.size}
                for name, file in self.artifacts.items()
            },
        }
        jsonfile.write(folder / MANIFEST, data, durable=True)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest of an entry's folder; ``None`` if there is none that is whole."""
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                return None
            return cls(
                name=str(data["name"]),
                arch=str(data["arch"]),
                version=str(data["version"]),
                variant=str(data["variant"]),
                key=str(data["key"]),
                created=float(data["created"]),
                seconds=float(data["seconds"]),
                artifacts={
                    str(name): File(str(file["file"]), str(file["sha256"]), int(file["size"]))
                    for name, file in data["artifacts"].items()
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def faults(self, folder: Path, *, contents: bool) -> list[str]:
        """Return what is wrong with the files of an entry, a sentence each.

        Args:
            folder: The entry's folder.
            contents: Whether to compare digests too, which reads every byte.
        """
        found = []
        for file in self.artifacts.values():
            path = folder / file.file
            try:
                size = path.stat().st_size
                if size != file.size:
                    found.append(f"{path} has {size} bytes, not {file.size}")
                elif contents:
                    with path.open("rb") as source:
                        digest = hashlib.file_digest(source, "sha256").hexdigest()
                    if digest != file.sha256:
                        found.append(f"{path} has sha256 {digest}, not {file.sha256}")
            except OSError as error:
                found.append(f"{path}: {error.strerror}")
        return found


class State(StrEnum):
    """How an entry is."""

    READY = "ready"
    IN_USE = "in use"
    BUILDING = "building"
    INTERRUPTED = "interrupted"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the cache, as a listing tells it.

    Attributes:
        id: The name of its folder.
        path: Its folder.
        state: How it is.
        bytes: What it takes on disk.
        created: When it was made, in seconds of the epoch.
        used: When it was last asked for, in seconds of the epoch.
        manifest: What it says of itself; ``None`` if that cannot be read.
    """

    id: str
    path: Path
    state: State
    bytes: int
    created: float
    used: float
    manifest: Manifest | None


class Artifacts(Mapping[str, Path]):
    """The files of an entry, by name; nobody removes them until :meth:`close`.

    Without :meth:`close` they are kept until the process ends. They are read-only: write to an
    overlay.

    Attributes:
        id: The entry's name.
        directory: Its folder.
        manifest: What it says of itself.
    """

    def __init__(self, entry: str, directory: Path, manifest: Manifest, lock: Lock) -> None:
        self.id = entry
        self.directory = directory
        self.manifest = manifest
        self._lock = lock

    def __getitem__(self, name: str) -> Path:
        return self.directory / self.manifest.artifacts[name].file

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.artifacts)

    def __len__(self) -> int:
        return len(self.manifest.artifacts)

    @property
    def files(self) -> dict[str, Path]:
        """The files by name, as a dictionary of one's own."""
        return dict(self)

    def close(self) -> None:
        """Say that they are not used any more."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
