"""What the host's refusals to write mean."""

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
    """Return the error for a full disk; ``where`` is a folder on it."""
    while not where.exists() and where != where.parent:
        where = where.parent
    free = shutil.disk_usage(where).free
    return DiskFullError(
        f"no space left on the disk of {where}: {format_size(free)} free; {why}",
        evidence=evidence,
        hint=HINT,
    )


@contextmanager
def explained(where: Path, what: str) -> Iterator[None]:
    """Turn the host's refusal to write below ``where`` into an error of the store.

    Args:
        where: A folder of the cache.
        what: What was being done: ``publishing skiff``.

    Raises:
        DiskFullError: for a full disk or quota.
        StoreError: for any other ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(where, f"{what} needs more") from error
        hint = "look at the path above and at its disk"
        if error.errno in (errno.EFBIG, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENODEV):
            hint = (
                "its file system cannot do that: put the cache on a local disk: HARNESS_CACHE=/path"
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            hint = "make it writable, or put the cache elsewhere: HARNESS_CACHE=/path"
        raise StoreError(f"{what}: {error}", evidence=str(where), hint=hint) from error


def disk_usage(path: Path) -> int:
    """Return the bytes that a file or folder takes on disk: holes are none."""
    total = 0
    pending = [path]
    while pending:
        current = pending.pop()
        # What another process removes meanwhile takes no space; what is in a folder that we cannot
        # read is not known.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            status = current.lstat()
            total += status.st_blocks * 512  # in units of 512 bytes: stat(2)
            if stat.S_ISDIR(status.st_mode):
                pending += [Path(entry.path) for entry in os.scandir(current)]
    return total


def remove_tree(path: Path) -> None:
    """Remove a file or folder, and what in it is read-only; nothing if it is not there.

    Raises:
        OSError: if something of it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    def again(function: Callable[..., Any], name: str, error: Any) -> None:
        problem = error[1] if isinstance(error, tuple) else error
        if isinstance(problem, FileNotFoundError):
            return
        # A folder without write permission: a build may leave such.
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
    """Write a file, or a folder's names, down to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
