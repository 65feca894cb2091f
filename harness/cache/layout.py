"""The folders and files of a cache.

::

    entries/ID/           a complete entry, with its manifest
    tmp/ID/               an entry that is being built or removed, or that a killed process left behind
    locks/ID.make         held by the process that builds or removes the entry
    locks/ID.use          shared by the processes that use the entry
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from harness.cache.locks import try_lock

# Backup programs skip a folder with this file: bford.info/cachedir
_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# The cache of Harness.\n"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below the root of a cache."""

    FOLDERS: ClassVar[tuple[str, ...]] = ("entries", "tmp", "locks")

    root: Path

    def make(self) -> None:
        """Make the folders that do not exist.

        Raises:
            OSError: A folder cannot be made.
        """
        for name in self.FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(_TAG)

    @property
    def entries(self) -> Path:
        """The folder of all complete entries."""
        return self.root / "entries"

    @property
    def drafts(self) -> Path:
        """The folder of all entries that are not complete."""
        return self.root / "tmp"

    def entry(self, entry: str) -> Path:
        """Return the folder of a complete entry."""
        return self.entries / entry

    def draft(self, entry: str) -> Path:
        """Return the folder in which an entry is built and removed."""
        return self.drafts / entry

    def make_lock(self, entry: str) -> Path:
        """Return the lock file of the process that builds or removes an entry."""
        return self.root / "locks" / f"{entry}.make"

    def use_lock(self, entry: str) -> Path:
        """Return the lock file of the processes that use an entry."""
        return self.root / "locks" / f"{entry}.use"

    def folders(self) -> Iterator[Path]:
        """Yield the folder of each entry, complete ones first."""
        for parent in (self.entries, self.drafts):
            if parent.is_dir():
                yield from sorted(parent.iterdir())

    def remove_abandoned_locks(self) -> None:
        """Remove the lock files of entries that do not exist.

        A process that was killed while it removed an entry leaves such files. A process that is about
        to build an entry holds its lock, or takes the lock again when its file has been removed.

        Raises:
            OSError: A lock file cannot be removed.
        """
        for path in [*self.root.glob("locks/*.make"), *self.root.glob("locks/*.use")]:
            if self.entry(path.stem).exists() or self.draft(path.stem).exists():
                continue
            if (lock := try_lock(path, sign=False)) is not None:
                lock.remove()
