"""Reads the partition table of a rebuilt disk, on the host."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SECTOR: Final = 512
_HEADER: Final = struct.Struct("<8s IIII QQQQ 16s QIII")
"""The header of a GUID partition table: UEFI 2.10, table 5.5."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk.

    Attributes:
        label: The name in the partition table.
        start: The offset from the disk's beginning, bytes.
        size: The size, bytes.
    """

    label: str
    start: int
    size: int


def partitions(disk: Path) -> list[Partition]:
    """Return the partitions of a raw disk; an empty list if it has no GUID partition table.

    Only the first of the two tables is read, as a boot loader does.
    """
    parts = []
    with disk.open("rb") as file:
        file.seek(_SECTOR)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(b"EFI PART"):
            return []
        *_, table, count, size, _ = _HEADER.unpack(header)
        if size < 128 or count > 1024:
            return []
        file.seek(table * _SECTOR)
        for _ in range(count):
            entry = file.read(size)
            if len(entry) < size or not any(entry[:16]):
                continue
            first, last = struct.unpack_from("<QQ", entry, 32)
            label = entry[56:128].decode("utf-16-le", "replace").rstrip("\0")
            parts.append(Partition(label, first * _SECTOR, (last - first + 1) * _SECTOR))
    return parts


def partition(disk: Path, label: str) -> Partition | None:
    """Return the partition with a label, or ``None``."""
    return next((part for part in partitions(disk) if part.label == label), None)
