"""The partitions of a rebuilt disk, read on the host."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
