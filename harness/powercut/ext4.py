"""Checks an ext4 file system after a power cut, on the host, on a copy.

The journal is replayed, as a mount does. Then ``e2fsck -n`` must find nothing but what a mount repairs
as well. The partition is copied into a file of its own: e2fsck 1.47 loses ``?offset=`` when it reopens
the file system after the replay, and finds no super block.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from harness.errors import GuestError, HostError
from harness.powercut.partitions import Partition, partition

_PART: Final = 1 << 22

_FINE: Final = re.compile(
    r"e2fsck \d.*|Pass \d.*|(Fix|Clear)\? no"
    r"|Feature orphan_present is set but orphan file is clean\."
    r"|Free (blocks|inodes) count wrong \(\d+, counted=\d+\)\."
    r"|.*: \*+ WARNING: Filesystem still has errors \*+"
    r"|.*: \d+/\d+ files \(.*\), \d+/\d+ blocks"
    r"|"
)
"""The output of e2fsck 1.47 for a sound file system that was not unmounted.

The totals in its super block date from the last unmount; a mount counts anew.
"""

_ORPHAN: Final = re.compile("orphan(ed inode| file)")
"""Files that were deleted while open: a mount removes them."""


def check_ext4(disk: Path, label: str = "") -> None:
    """Check that the file system of a disk or partition is sound once its journal is replayed.

    Args:
        disk: A raw disk, which is only read.
        label: The partition's name in the partition table; empty for the whole disk.

    Raises:
        GuestError: The file system is damaged, with the output of ``e2fsck``; or the disk has no such
            partition.
        HostError: ``e2fsck`` is not installed.
    """
    program = shutil.which("e2fsck") or shutil.which("e2fsck", path="/usr/sbin:/sbin")
    if program is None:
        raise HostError("e2fsck is not installed", hint="install the package e2fsprogs")
    whole = Partition("the disk", 0, disk.stat().st_size)
    where = partition(disk, label) if label else whole
    if where is None:
        raise GuestError(f"the disk has no partition {label!r}", evidence=str(disk))
    copy = disk.with_name(f"{disk.name}.ext4")
    try:
        _extract(disk, where, copy)
        status, output = _run(program, "-p", "-E", "journal_only", str(copy))
        damage = "" if status in (0, 1) else f"its journal cannot be replayed, status {status}"
        if not damage:
            status, checked = _run(program, "-f", "-n", str(copy))
            output += checked
            wrong = [line for line in checked.splitlines() if not _FINE.fullmatch(line)]
            if wrong and any(_ORPHAN.search(line) for line in wrong):
                # This repairs harmless faults silently, so it runs only if there are orphans.
                status, preened = _run(program, "-f", "-p", str(copy))
                output += preened
                wrong = [] if status in (0, 1) else wrong
            if wrong or status not in (0, 1, 4):
                damage = wrong[0] if wrong else f"e2fsck ended with {status}"
    finally:
        copy.unlink(missing_ok=True)
    if damage:
        raise GuestError(
            f"the file system of {where.label} is damaged: {damage}",
            evidence=f"{disk}\n{output}",
            hint=f"copy {where.size} bytes from {where.start} of the disk, and run e2fsck on that",
        )


def _run(*command: str) -> tuple[int, str]:
    process = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return process.returncode, process.stdout


def _extract(disk: Path, where: Partition, target: Path) -> None:
    """Copy a partition into a file of its own, with holes in the place of zeros."""
    with disk.open("rb") as source, target.open("wb") as sink:
        os.ftruncate(sink.fileno(), where.size)
        source.seek(where.start)
        offset = 0
        while offset < where.size:
            part = source.read(min(_PART, where.size - offset))
            if not part:
                return
            if part.count(0) != len(part):
                sink.seek(offset)
                sink.write(part)
            offset += len(part)
