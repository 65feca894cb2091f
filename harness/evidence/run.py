"""The folder of a run: one sub-folder for each test, kept where it is worth keeping.

A run in which no machine was started leaves nothing. A run holds a lock on its folder while it
lives. What a killed run left, a later one notices by the lock and tidies: disks go, the rest of its
evidence stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import time
from pathlib import Path
from typing import Final

from harness.errors import StoreError

RUNS_KEPT: Final = 30
"""Runs whose evidence is kept; older ones go when a new run begins."""

_NAME: Final = re.compile(r"\d{8}-\d{6}-\d+(-\d+)?")
_LOCK: Final = "run.lock"
_USED: Final = ".used"


class Run:
    """The folder of one run.

    Args:
        path: The folder.
        lock: The open file that says the run lives; ``None`` in a worker of a run.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self._lock = lock
        self._known_used = False

    @classmethod
    def create(cls, root: Path) -> Run:
        """Make the folder of a new run below ``root`` and tidy after dead ones.

        Raises:
            StoreError: if ``root`` cannot be written.
        """
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            path = root / stem
            for number in itertools.count(2):
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
                path = root / f"{stem}-{number}"
            ignore = root.parent / ".gitignore"
            if root.parent.name == ".harness" and not ignore.exists():
                ignore.write_text("*\n")
            descriptor = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(
                f"evidence cannot be written below {root}: {error}",
                hint="name a writable folder with --evidence",
            ) from error
        sweep(root)
        return cls(path, descriptor)

    def folder(self, test: str) -> Path:
        """Return the folder for a test, named after its node id."""
        path = self.path / slug(test)
        path.mkdir(parents=True, exist_ok=True)
        if not self._known_used:
            self._known_used = True
            (self.path / _USED).touch()
            latest = self.path.parent / f".latest-{os.getpid()}"
            latest.symlink_to(self.path.name)
            latest.replace(self.path.parent / "latest")
        return path

    @property
    def used(self) -> bool:
        """Whether a test of this run, in whichever worker, had a folder."""
        return (self.path / _USED).exists()

    def drop(self, folder: Path) -> None:
        """Remove the evidence of a test that passed."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Say that the run is over; the folder of one that had no machine goes."""
        if self._lock is not None:
            os.close(self._lock)
            (self.path / _LOCK).unlink(missing_ok=True)
            self._lock = None
            if not self.used:
                shutil.rmtree(self.path, ignore_errors=True)


def slug(test: str) -> str:
    """Return a node id as a folder's name, unique and at most 120 characters.

    ``suites/boot/test_boot.py::test_login[x]`` becomes ``boot-test_boot-test_login-x``. One with
    characters that no name has here gets a digest: ``[a b]`` and ``[a-b]`` are two tests.
    """
    short = re.sub(r"^(suites|tests)/", "", test).replace(".py::", "-")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", short).strip("-")
    if len(name) > 120 or not re.fullmatch(r"[\w./-]+(::\w+)*(\[[\w.-]+\])?", test, re.ASCII):
        name = f"{name[:110]}-{hashlib.sha256(test.encode()).hexdigest()[:9]}"
    return name


def sweep(root: Path) -> None:
    """Tidy after runs that ended: disks of the dead, whole folders of the old.

    ``root`` may be anybody's folder: only what a run has made there, and nobody has renamed, is one.
    """
    runs = sorted(path for path in root.iterdir() if _is_run(path))
    for number, path in enumerate(reversed(runs)):
        if _alive(path):
            continue
        if number >= RUNS_KEPT:
            shutil.rmtree(path, ignore_errors=True)
        elif (path / _LOCK).exists():
            for disks in path.glob("**/disks"):
                shutil.rmtree(disks, ignore_errors=True)
            (path / _LOCK).unlink(missing_ok=True)


def _is_run(path: Path) -> bool:
    """Whether a run made this folder: each that has not been removed has one of these files."""
    return (
        _NAME.fullmatch(path.name) is not None
        and path.is_dir()
        and not path.is_symlink()
        and ((path / _USED).exists() or (path / _LOCK).exists())
    )


def _alive(path: Path) -> bool:
    """Whether somebody holds the lock of a run."""
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return False
