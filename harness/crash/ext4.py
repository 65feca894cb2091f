"""Checks an ext4 file system that power was taken from, on the host, on a copy.

The journal is replayed, as each mount does; then ``e2fsck -n`` must find nothing that a mount does not
put right as well. It gets the partition as a file of its own: e2fsck 1.47 forgets ``?offset=`` when it
opens a file system anew after the replay, and finds no super block.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from harness.crash.partitions import Partition, partition
from harness.errors import GuestError, HostError

_PART: Final = 1 << 22

_FINE: Final = re.compile(
    r"e2fsck \d.*|Pass \d.*|(Fix|Clear)\? no"
    r"|Feature orphan_present is set but orphan file is clean\."
    r"|Free (blocks|inodes) count wrong \(\d+, counted=\d+\)\."
    r"|.*: \*+ WARNING: Filesystem still has errors \*+"
    r"|.*: \d+/\d+ files \(.*\), \d+/\d+ blocks"
    r"|"
)
"""What e2fsck 1.47 says of a file system that is whole but was not unmounted: the super block's totals
are those of the last time it was, and each mount counts anew."""

_ORPHAN: Final = re.compile("orphan(ed inode| file)")
"""Files that were deleted while open: each mount finishes that."""


def check_ext4(disk: Path, label: str = "") -> None:
    """Check that the file system of a disk or of a partition is whole once its journal is replayed.

    Args:
        disk: A raw disk; it is only read.
        label: The partition's name in the partition table; empty for the whole disk.

    Raises:
        GuestError: if something is wrong, or there is no such partition; with what ``e2fsck`` said.
        HostError: if ``e2fsck`` is missing.
    """
    program = shutil.which("e2fsck") or shutil.which("e2fsck", path="/usr/sbin:/sbin")
    if program is None:
        raise HostError("e2fsck is not installed", hint="install the package e2fsprogs")
    whole = Partition("the disk", 0, disk.stat().st_size)
    where = partition(disk, label) if label else whole
    if where is None:
        raise GuestError(f"the disk has no partition {label!r}", evidence=str(disk))
    alone = disk.with_name(f"{disk.name}.ext4")
    try:
        _extract(disk, where, alone)
        status, said = _run(program, "-p", "-E", "journal_only", str(alone))
        found = "" if status in (0, 1) else f"its journal is not replayed, status {status}"
        if not found:
            status, checked = _run(program, "-f", "-n", str(alone))
            said += checked
            wrong = [line for line in checked.splitlines() if not _FINE.fullmatch(line)]
            if wrong and any(_ORPHAN.search(line) for line in wrong):
                # Mends in silence what is harmless, so only where there is something to be mended.
                status, preened = _run(program, "-f", "-p", str(alone))
                said += preened
                wrong = [] if status in (0, 1) else wrong
            if wrong or status not in (0, 1, 4):
                found = wrong[0] if wrong else f"e2fsck ended with {status}"
    finally:
        alone.unlink(missing_ok=True)
    if found:
        raise GuestError(
            f"the file system of {where.label} is damaged: {found}",
            evidence=f"{disk}\n{said}",
            hint=f"copy {where.size} bytes from {where.start} of the disk, and run e2fsck on that",
        )


def _run(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def _extract(disk: Path, where: Partition, target: Path) -> None:
    """Copy a partition into a file of its own, leaving out what is zeros."""
    with disk.open("rb") as source, target.open("wb") as copy:
        os.ftruncate(copy.fileno(), where.size)
        source.seek(where.start)
        offset = 0
        while offset < where.size:
            part = source.read(min(_PART, where.size - offset))
            if not part:
                return
            if part.count(0) != len(part):
                copy.seek(offset)
                copy.write(part)
            offset += len(part)
