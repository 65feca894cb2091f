"""Features of the cache's file system that saved states profit from.

Saved RAM is a file with holes at the pages that the guest never wrote, and forks map the file. States
work without both features. On a file system without holes (vfat, exFAT) a state takes as much space as
its machine has memory. On one that does not report holes (ramfs, many FUSE file systems) Harness finds
them by reading. On one that cannot map files, each fork has a copy of the RAM.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Final

from harness.spec import MIB

_SIZE: Final = 8 * MIB
_BLOCK: Final = 64 * 1024


def lacks(folder: Path) -> list[str]:
    """Return the missing features of a folder's file system and their cost, a predicate each.

    Raises:
        OSError: The folder cannot be written to.
    """
    missing = []
    # A temporary file without a name: the kernel removes it when this process ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        os.truncate(file.fileno(), _SIZE)
        os.pwrite(file.fileno(), b"x" * _BLOCK, _SIZE // 2)
        os.fsync(file.fileno())
        if os.fstat(file.fileno()).st_blocks * 512 > _SIZE // 2:
            missing.append(
                "has no holes in files: a state takes as much space as its machine has memory"
            )
        elif not _reports_holes(file.fileno()):
            missing.append(
                "does not report holes in files: Harness finds them by reading, which takes time"
            )
        if why := _unmapped(file.fileno()):
            missing.append(
                f"cannot map files ({why}): each fork copies the saved memory and shares none"
            )
    return missing


def unmapped(path: Path) -> str:
    """Return why forks cannot map a file privately; empty if they can, or the file cannot be read."""
    try:
        with path.open("rb") as file:
            return _unmapped(file.fileno())
    except OSError:
        return ""  # the check of the seals reports it


def _unmapped(fd: int) -> str:
    try:
        # The whole file, as QEMU does. Read-only, since writable private pages count as memory.
        mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ).close()
    except ValueError:
        return ""  # the file is empty; the check of the seals reports it
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _reports_holes(fd: int) -> bool:
    try:
        return os.lseek(fd, 0, os.SEEK_DATA) > 0
    except OSError:
        return False
