"""What states ask of the file system of the cache, and it may lack.

Saved RAM is a file with holes where the guest never wrote, and forks map it. Neither is needed: without
holes a state is as large as its machine's memory (vfat, exFAT), where holes are not told (ramfs, many
FUSE file systems) they are looked for by reading, and where files cannot be mapped each fork has a copy.
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
    """Return what the file system of a folder lacks, and what that costs; a sentence each.

    Raises:
        OSError: if nothing can be written there.
    """
    found = []
    # Without a name, or with none for long: nothing is left, whatever ends this process.
    with tempfile.TemporaryFile(dir=folder) as file:
        os.truncate(file.fileno(), _SIZE)
        os.pwrite(file.fileno(), b"x" * _BLOCK, _SIZE // 2)
        os.fsync(file.fileno())
        if os.fstat(file.fileno()).st_blocks * 512 > _SIZE // 2:
            found.append(
                "keeps no holes in files: a state takes all of its machine's memory on disk"
            )
        elif not _tells_holes(file.fileno()):
            found.append(
                "does not tell holes in files: they are looked for by reading, which takes time"
            )
        if why := _unmapped(file.fileno()):
            found.append(
                f"does not map files ({why}): each fork copies the saved memory, shares none"
            )
    return found


def unmapped(path: Path) -> str:
    """Return why a file cannot be mapped privately, as forks do; empty if it can, or is not there."""
    try:
        with path.open("rb") as file:
            return _unmapped(file.fileno())
    except OSError:
        return ""  # for whoever looks whether it is whole


def _unmapped(fd: int) -> str:
    try:
        # All of it, as QEMU does. To be read only: what a writer may write counts as memory.
        mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ).close()
    except ValueError:
        return ""  # an empty file, which is not whole
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _tells_holes(fd: int) -> bool:
    try:
        return os.lseek(fd, 0, os.SEEK_DATA) > 0
    except OSError:
        return False
