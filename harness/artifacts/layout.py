"""The folders of the cache of artifacts: those of any cache, and those of build scripts.

::

    work/IMAGE/           the files that a build script keeps between its runs; one script at a time
    logs/ID.log           the output of the build script that built an entry
    locks/IMAGE.work      held by the process whose build script uses the work folder
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.cache import Layout


class BuildLayout(Layout):
    """The paths below the root of the cache of artifacts."""

    __slots__ = ()

    FOLDERS: ClassVar[tuple[str, ...]] = (*Layout.FOLDERS, "work", "logs")

    @property
    def works(self) -> Path:
        """The folder of all work folders."""
        return self.root / "work"

    @property
    def logs(self) -> Path:
        """The folder of all logs."""
        return self.root / "logs"

    def log(self, entry: str) -> Path:
        """Return the log of an entry's build."""
        return self.logs / f"{entry}.log"

    def work(self, image: str) -> Path:
        """Return the work folder of an image's build script."""
        return self.works / image

    def work_lock(self, image: str) -> Path:
        """Return the lock file of an image's work folder."""
        return self.root / "locks" / f"{image}.work"
