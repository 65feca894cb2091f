"""Space on disk: errors of writing explained, usage measured, folders removed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from harness.errors import DiskFullError, StoreError
from harness.spec import format_size

HINT: Final = (
    "free some space: 'harness images gc'; or put the cache on a larger disk: HARNESS_CACHE=/path"
)


def full(where: Path, why: str, *, evidence: str = "") -> DiskFullError:
    """Return the error for a full disk.

    Args:
        where: A path on the disk; it may not exist.
        why: The cause, for the message.
        evidence: The evidence, as in :class:`~harness.errors.HarnessError`.
    """
    while not where.exists() and where != where.parent:
        where = where.parent
    free = shutil.disk_usage(where).free
    return DiskFullError(
        f"no space left on the disk of {where}: {format_size(free)} free; {why}",
        evidence=evidence,
        hint=HINT,
    )


@contextmanager
def explained(where: Path, activity: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an error that says what to try.

    Args:
        where: A folder of the cache.
        activity: The activity of the block, for the message: ``publishing skiff``.

    Raises:
        DiskFullError: The disk or the quota is full.
        StoreError: Another ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(where, f"{activity} needs more") from error
        hint = "check the path above and its disk"
        if error.errno in (errno.EFBIG, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENODEV):
            hint = (
                "its file system cannot do this; put the cache on a local disk: HARNESS_CACHE=/path"
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            hint = "make it writable, or put the cache elsewhere: HARNESS_CACHE=/path"
        raise StoreError(f"{activity}: {error}", evidence=str(where), hint=hint) from error


def disk_usage(path: Path) -> int:
    """Return the bytes that a file or folder takes on disk; holes take none."""
    total = 0
    pending = [path]
    while pending:
        current = pending.pop()
        # Another process may remove files meanwhile. Folders that this user cannot read are skipped.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            status = current.lstat()
            total += status.st_blocks * 512  # in units of 512 bytes: stat(2)
            if stat.S_ISDIR(status.st_mode):
                pending += [Path(entry.path) for entry in os.scandir(current)]
    return total


def remove_tree(path: Path) -> None:
    """Remove a file or folder, read-only contents included; a missing one is no error.

    Raises:
        OSError: A part of it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    def again(function: Callable[..., Any], name: str, error: Any) -> None:
        problem = error[1] if isinstance(error, tuple) else error
        if isinstance(problem, FileNotFoundError):
            return
        # A build may leave a folder without write permission.
        for folder in (Path(name).parent, Path(name)):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o700)
        if Path(name).is_dir() and not Path(name).is_symlink():
            shutil.rmtree(name)
        else:
            Path(name).unlink(missing_ok=True)

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=again)
    else:
        shutil.rmtree(path, onerror=again)


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
