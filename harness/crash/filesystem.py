"""Looks into a rebuilt disk on the host: finds a partition, checks its file system.

Power may go at any time under a file system with a journal, and mounting it replays that journal. So
the journal is replayed first, and what ``e2fsck(8)`` finds wrong after that is a fault.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import GuestError, HostError

_SECTOR: Final = 512
_HEAD: Final = struct.Struct("<8s IIII QQQQ 16s QIII")
"""The head of a GUID partition table: UEFI 2.10, table 5.5."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk.

    Attributes:
        label: Its name in the partition table.
        start: Bytes from the disk's beginning.
        size: Bytes.
    """

    label: str
    start: int
    size: int


def partitions(disk: Path) -> list[Partition]:
    """Return the partitions of a raw disk; none if it has no GUID partition table.

    Only the first of the two tables is looked at, as a boot loader does.
    """
    found = []
    with disk.open("rb") as file:
        file.seek(_SECTOR)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(b"EFI PART"):
            return []
        *_, table, count, size, _ = _HEAD.unpack(head)
        if size < 128 or count > 1024:
            return []
        file.seek(table * _SECTOR)
        for _ in range(count):
            entry = file.read(size)
            if len(entry) < size or not any(entry[:16]):
                continue
            first, last = struct.unpack_from("<QQ", entry, 32)
            label = entry[56:128].decode("utf-16-le", "replace").rstrip("\0")
            found.append(Partition(label, first * _SECTOR, (last - first + 1) * _SECTOR))
    return found


def partition(disk: Path, label: str) -> Partition | None:
    """Return the partition of a label, ``None`` if there is none."""
    return next((each for each in partitions(disk) if each.label == label), None)


def check_ext4(disk: Path, where: Partition | None = None) -> None:
    """Replay the journal of an ext4 file system and check that nothing is wrong then.

    The replay is written to ``disk``: give it a copy that is not started any more.

    Args:
        disk: A raw disk.
        where: The partition; the whole disk without one.

    Raises:
        GuestError: if something is wrong; carries what ``e2fsck`` said.
        HostError: if ``e2fsck`` is missing.
    """
    program = shutil.which("e2fsck") or shutil.which("e2fsck", path="/usr/sbin:/sbin")
    if program is None:
        raise HostError("e2fsck is not installed", hint="install the package e2fsprogs")
    target = str(disk) if where is None else f"{disk}?offset={where.start}"
    said = ""
    # Status 1 of the first says that the journal was replayed; of the second nothing is fine but 0.
    for options, fine in ((["-p", "-E", "journal_only"], (0, 1)), (["-f", "-n"], (0,))):
        done = subprocess.run(
            [program, *options, target],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        said += done.stdout + done.stderr
        if done.returncode not in fine:
            label = where.label if where is not None else "the disk"
            raise GuestError(
                f"the file system of {label} is damaged: e2fsck ended with {done.returncode}",
                evidence=said,
                hint=f"run e2fsck -fn {target!r} by hand",
            )
