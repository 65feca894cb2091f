"""Where things lie in the cache.

::

    entries/ID/           what is ready: the artifacts and manifest.json
    tmp/ID/               what is being made, or was when somebody was killed
    locks/ID.make         held by who makes or removes the entry
    locks/ID.use          shared by who uses it; held alone by who removes it
    locks/IMAGE.work      held by who runs a build script in the image's work folder
    work/IMAGE/           what a build script keeps between its runs; one script at a time
    logs/ID.log           the output of build scripts
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.store.locks import try_lock

# Backup programs leave out a folder with this file: bford.info/cachedir
_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# The cache of Harness.\n"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below the cache's root."""

    root: Path

    def make(self) -> None:
        """Make the folders that are not there."""
        for name in ("entries", "tmp", "locks", "work", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(_TAG)

    @property
    def entries(self) -> Path:
        """The folder of all entries."""
        return self.root / "entries"

    @property
    def temporaries(self) -> Path:
        """The folder of all that is being made."""
        return self.root / "tmp"

    @property
    def works(self) -> Path:
        """The folder of all work folders."""
        return self.root / "work"

    @property
    def logs(self) -> Path:
        """The folder of all logs."""
        return self.root / "logs"

    def entry(self, entry: str) -> Path:
        """The folder of an entry."""
        return self.entries / entry

    def temporary(self, entry: str) -> Path:
        """The folder that an entry is made in."""
        return self.temporaries / entry

    def log(self, entry: str) -> Path:
        """The log of an entry's build."""
        return self.logs / f"{entry}.log"

    def work(self, image: str) -> Path:
        """The work folder of an image's build script."""
        return self.works / image

    def make_lock(self, entry: str) -> Path:
        """The lock file of who makes or removes an entry."""
        return self.root / "locks" / f"{entry}.make"

    def use_lock(self, entry: str) -> Path:
        """The lock file of who uses an entry."""
        return self.root / "locks" / f"{entry}.use"

    def remove_abandoned_locks(self) -> None:
        """Remove the lock files of entries that are not there: of who was killed as he removed one.

        Whoever is about to make an entry holds its lock, or takes it again when its file is gone.

        Raises:
            OSError: if one cannot be removed.
        """
        for path in [*self.root.glob("locks/*.make"), *self.root.glob("locks/*.use")]:
            if self.entry(path.stem).exists() or self.temporary(path.stem).exists():
                continue
            if (alone := try_lock(path, sign=False)) is not None:
                alone.remove()

    def work_lock(self, image: str) -> Path:
        """The lock file of an image's work folder."""
        return self.root / "locks" / f"{image}.work"
