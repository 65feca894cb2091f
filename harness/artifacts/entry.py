"""An entry of the cache of artifacts: its recipe, its key, its manifest, its lease."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from harness import jsonfile
from harness.cache import Lease
from harness.errors import StoreError

if TYPE_CHECKING:
    from pydantic import ConfigDict

FORMAT: Final = 1
"""The version of keys and manifests; a new number makes every entry be built again."""

MANIFEST: Final = "manifest.json"

_KEY_LENGTH: Final = 20
"""Hexadecimal digits of a key in a folder's name: 80 bits, enough for the entries of one host."""

DESCRIPTION: Final = "image.yaml"

UNKNOWN: Final = "unknown"
"""The checksum of a file that nobody has verified yet."""

_SKIPPED: Final = frozenset({"__pycache__", ".git"})


class Source(Protocol):
    """The source of one artifact: the build script, or a URL and its checksum."""

    @property
    def file(self) -> str:
        """The path of the file below the entry's folder."""

    @property
    def url(self) -> str | None:
        """The URL to fetch the file from; ``None`` if the build script makes it."""

    @property
    def format(self) -> str:
        """The format of a disk: ``raw`` or ``qcow2``; other files are ``raw``."""

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of a file that is fetched, in hexadecimal; ``unknown`` until somebody says it."""

    @property
    def sha512(self) -> str | None:
        """The SHA-512, instead of the SHA-256."""


class Recipe(Protocol):
    """The description of artifacts that the store can build; a ``Selection`` of the catalogue is one."""

    @property
    def name(self) -> str:
        """The name of the image."""

    @property
    def arch(self) -> str:
        """The architecture."""

    @property
    def version(self) -> str:
        """The version."""

    @property
    def variant(self) -> str:
        """The variant."""

    @property
    def folder(self) -> Path:
        """The folder that contains the inputs."""

    @property
    def script(self) -> Path | None:
        """The build script; ``None`` if every file is fetched."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The files and folders that decide the output of the build, as paths from the folder."""

    @property
    def artifacts(self) -> Mapping[str, Source]:
        """The files by name."""


def digest_inputs(recipe: Recipe) -> str:
    """Return the key of a recipe: the SHA-256 of everything that decides the artifacts.

    The key covers architecture, version and variant, the names and checksums of the artifacts, and of
    each input its path, its content and whether it is executable (the part of a file's mode that git
    keeps). URLs do not count, since the checksum identifies a file. ``image.yaml`` counts only if an
    input names it.

    Raises:
        StoreError: An input cannot be read.
    """
    facts: list[Any] = [FORMAT, recipe.name, recipe.arch, recipe.version, recipe.variant]
    for name, source in sorted(recipe.artifacts.items()):
        digest = [source.sha256] if source.sha512 is None else ["sha512", source.sha512]
        facts.append([name, source.file, *digest])
    if recipe.script is not None:
        facts.append(["script", os.path.relpath(recipe.script, recipe.folder)])
        facts.append(_fact(recipe.script, "script"))
        try:
            for start in sorted(set(recipe.inputs)):
                for name, path in _files(recipe.folder / start, start):
                    facts.append(_fact(path, name))
        except OSError as error:
            raise StoreError(
                f"an input of {recipe.name} cannot be read: {error}",
                hint="see build.inputs in its image.yaml",
            ) from error
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _files(path: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield every file at or below ``path``, in the same order on every file system."""
    if path.is_symlink() or not path.is_dir():
        yield name, path
        return
    yield f"{name}/", path
    for child in sorted(path.iterdir()):
        own = name == "." and child.name == DESCRIPTION
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
        raise StoreError(f"the input {path} is not a file, a folder or a symbolic link")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [name, "program" if status.st_mode & stat.S_IXUSR else "file", digest]


def entry_id(recipe: Recipe, key: str) -> str:
    """Return the name of an entry's folder."""
    label = f"{recipe.name}-{recipe.variant}-{recipe.version}-{recipe.arch}"
    return f"{label}-{key[:_KEY_LENGTH]}"


@dataclass(frozen=True, slots=True)
class File:
    """An artifact in a manifest.

    Attributes:
        file: Its path below the entry's folder.
        sha256: Its SHA-256, in hexadecimal.
        size: Bytes.
    """

    file: str
    sha256: str
    size: int

    def fault(self, folder: Path, *, contents: bool) -> str | None:
        """Return the fault of the file below an entry's folder; ``None`` if it has none.

        Args:
            folder: The entry's folder.
            contents: Whether to compare the checksum too, which reads every byte.
        """
        path = folder / self.file
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"{path} has {size} bytes, not {self.size}"
            if contents:
                with path.open("rb") as source:
                    digest = hashlib.file_digest(source, "sha256").hexdigest()
                if digest != self.sha256:
                    return f"{path} has sha256 {digest}, not {self.sha256}"
        except OSError as error:
            return f"{path}: {error.strerror}"
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of an entry.

    Attributes:
        name: The name of the image.
        arch: The architecture.
        version: The version.
        variant: The variant.
        key: The digest of all inputs.
        created: The time when the entry was built, in seconds of the epoch.
        seconds: The duration of the build.
        artifacts: The files by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    name: str
    arch: str
    version: str
    variant: str
    key: str
    created: float
    seconds: float
    artifacts: Mapping[str, File]

    def write(self, folder: Path) -> None:
        """Write the manifest into an entry's folder, synced to the disk."""
        jsonfile.save(folder / MANIFEST, self, format=FORMAT)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest in an entry's folder; ``None`` if it is missing or damaged."""
        try:
            return jsonfile.load(folder / MANIFEST, cls, format=FORMAT)
        except (OSError, ValueError):
            return None

    def faults(self, folder: Path, *, contents: bool) -> list[str]:
        """Return the faults of an entry's files, a sentence each; as :meth:`File.fault`."""
        checked = (file.fault(folder, contents=contents) for file in self.artifacts.values())
        return [fault for fault in checked if fault is not None]


class Artifacts(Lease[Manifest], Mapping[str, Path]):
    """The paths of an entry's files, by name; valid until :meth:`close`, or this process ends.

    The files are read-only: write to an overlay.
    """

    def __getitem__(self, name: str) -> Path:
        return self.folder / self.manifest.artifacts[name].file

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.artifacts)

    def __len__(self) -> int:
        return len(self.manifest.artifacts)

    @property
    def files(self) -> dict[str, Path]:
        """The paths by name, as a new dictionary."""
        return dict(self)
