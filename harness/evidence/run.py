"""The folder of a run: one sub-folder per test, kept for failed tests or on request.

A test that is tried again has a folder for each try: the first try's is the test's own, and holds those
of the others, ``try-2`` and so on. No try finds a file of another one.

A run that starts no machine leaves nothing. A run holds a lock on its folder while it is alive; by that
lock a later run recognises the folder of a killed one and removes its disks. The rest of the evidence
stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import math
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Final

from harness.errors import StoreError

BUNDLE: Final = "bundle.tar.zst"
"""The name of a bundle in the evidence of its test; of a module's evidence, the end of its name."""

RUNS_KEPT: Final = 30
"""Number of runs whose evidence is kept; a new run removes older ones."""

UNREDACTED: Final = ".unredacted"
"""In the folder of a run that has declared a secret, until its evidence has lost it."""

_NAME: Final = re.compile(r"\d{8}-\d{6}-\d+(-\d+)?")
_LEFTOVERS: Final = ("disks", ".disk-*", ".bundle-*", ".*.part", ".*.redacted")
"""What only a run that was killed leaves: disks, copies of disks, drafts of bundles and of text."""

_TRY: Final = "try-"
_LOCK: Final = "run.lock"
_USED: Final = ".used"
_NUMBERS: Final = itertools.count(1)


class Run:
    """The folder of one run; nothing is made before something is worth keeping.

    A run may have several processes, the workers of pytest-xdist. Each that uses the folder shares its
    lock; the owner ends the run.

    Args:
        path: The folder.
        owner: Whether this process ends the run.
    """

    def __init__(self, path: Path, *, owner: bool = False) -> None:
        self.path = path
        self._owner = owner
        self._lock: int | None = None
        self._beginning = threading.Lock()

    @classmethod
    def reserve(cls, root: Path) -> Run:
        """Return a new run below ``root``, whose folder does not exist yet.

        Raises:
            StoreError: ``root`` cannot be written.
        """
        number = next(_NUMBERS)
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        existing = next(path for path in (root, *root.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise _unwritable(root, f"{existing} is not a folder that this user may write to")
        return cls(root / (stem if number == 1 else f"{stem}-{number}"), owner=True)

    def folder(self, name: str) -> Path:
        """Return a folder of Harness' own: of a server, of a state that is built.

        Raises:
            StoreError: The folder cannot be made.
        """
        self.begin()
        path = self.path / _readable(name)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def test_folder(self, test: str, worker: str = "") -> Path:
        """Return the folder of a test, or of a module whose tests share machines; it need not exist.

        Args:
            test: The node id.
            worker: The worker, where several have such a test or module.
        """
        return self.path / (f"{slug(test)}-{_readable(worker)}" if worker else slug(test))

    def new_try(self, test: str, worker: str = "", *, number: int = 1) -> Path:
        """Return an empty folder for a try of a test.

        Args:
            test: The node id.
            worker: As for :meth:`test_folder`.
            number: The number of the try; a later one is taken if its folder exists. The worker of an
                earlier try may have crashed.

        Raises:
            StoreError: The folder cannot be made.
        """
        self.begin()
        first = self.test_folder(test, worker)
        for count in itertools.count(number):
            path = _try(first, count)
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise _unwritable(self.path, str(error)) from error
            return path
        raise AssertionError("unreachable")

    def last_try(self, test: str, worker: str = "") -> Path | None:
        """Return the folder of a test's last try that has one; ``None`` if none has."""
        first = self.test_folder(test, worker)
        names = [path.name.removeprefix(_TRY) for path in first.glob(f"{_TRY}*")]
        path = _try(first, max((int(name) for name in names if name.isdecimal()), default=1))
        return path if path.is_dir() else None

    def begin(self) -> None:
        """Make the run's folder, and tidy after dead runs; does nothing the second time.

        Raises:
            StoreError: The folder cannot be made.
        """
        with self._beginning:
            if self._lock is None:
                self._lock = self._begin()

    def _begin(self) -> int:
        root = self.path.parent
        try:
            root.mkdir(parents=True, exist_ok=True)
            first = not self.path.exists()
            self.path.mkdir(exist_ok=True)
            descriptor = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            (self.path / _USED).touch()
            ignore = root.parent / ".gitignore"
            if root.parent.name == ".harness" and not ignore.exists():
                ignore.write_text("*\n")
            latest = root / f".latest-{os.getpid()}"
            latest.symlink_to(self.path.name)
            latest.replace(root / "latest")
        except OSError as error:
            raise _unwritable(root, str(error)) from error
        if first:
            sweep(root)
        return descriptor

    @property
    def used(self) -> bool:
        """Whether any test of this run, in any worker, had a folder."""
        return (self.path / _USED).exists()

    @property
    def unredacted(self) -> Path:
        """The file that is there while :data:`UNREDACTED` is true of this run."""
        return self.path / UNREDACTED

    def drop(self, folder: Path) -> None:
        """Remove the evidence of a test that passed."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of the folder; the owner ends the run. A second time does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._owner:
            with contextlib.suppress(OSError):
                (self.path / _LOCK).unlink()


def _unwritable(root: Path, why: str) -> StoreError:
    return StoreError(
        f"evidence cannot be written below {root}: {why}",
        hint="name a writable folder with --evidence",
    )


def _try(first: Path, number: int) -> Path:
    return first if number == 1 else first / f"{_TRY}{number}"


def slug(test: str) -> str:
    """Return a folder name for a node id: a readable part, and a digest that tells all ids apart.

    ``suites/boot/test_live.py::test_login[x]`` is ``boot-test_live-test_login-x-DIGEST``, in each run.
    The digest is always there: in the readable part, ``a/b`` and ``a-b`` look the same.
    """
    digest = hashlib.sha256(test.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{_readable(test)}-{digest}".lstrip("-")


def _readable(test: str) -> str:
    """Return a folder name of at most 110 characters, which several node ids may have in common."""
    short = re.sub(r"^(suites|tests)/", "", test).replace(".py::", "-")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", short).strip("-.")[:110]


def sweep(root: Path) -> None:
    """Clean up after ended runs: remove disks and drafts of killed ones, the oldest folders entirely.

    ``root`` may contain foreign folders. Only folders that a run created, under their original names,
    are touched.
    """
    runs = sorted(path for path in root.iterdir() if _is_run(path))
    for number, path in enumerate(reversed(runs)):
        if _alive(path):
            continue
        if number >= RUNS_KEPT:
            shutil.rmtree(path, ignore_errors=True)
        elif (path / _LOCK).exists():
            for leftover in [each for name in _LEFTOVERS for each in path.glob(f"**/{name}")]:
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
            (path / _LOCK).unlink(missing_ok=True)


def trim(root: Path, most: int, own: Path) -> tuple[int, int]:
    """Remove the oldest bundles below ``root`` until the rest takes at most ``most`` bytes.

    Bundles of ``own``, and of runs that are alive, count and stay. Reports and evidence stay, too.

    Args:
        root: The folder of the runs.
        most: Bytes that all bundles may take.
        own: The folder of the run that asks.

    Returns:
        How many were removed, and their bytes.
    """
    files: list[tuple[float, Path, int]] = []
    for run in filter(_is_run, root.iterdir()):
        free = run.resolve() != own.resolve() and not _alive(run)
        for path in run.glob(f"**/*{BUNDLE}"):
            # Another run may tidy up at the same time.
            with contextlib.suppress(OSError):
                stat = path.lstat()
                files.append((stat.st_mtime if free else math.inf, path, stat.st_size))
    total = sum(size for _, _, size in files)
    count = freed = 0
    for age, path, size in sorted(files):
        if total - freed <= most or age == math.inf:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            count += 1
            freed += size
    return count, freed


def _is_run(path: Path) -> bool:
    """Whether a run created this folder: each folder of a run holds one of these files."""
    return (
        _NAME.fullmatch(path.name) is not None
        and path.is_dir()
        and not path.is_symlink()
        and ((path / _USED).exists() or (path / _LOCK).exists())
    )


def _alive(path: Path) -> bool:
    """Whether a process holds the lock of a run."""
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
