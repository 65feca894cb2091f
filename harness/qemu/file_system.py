"""Reads the boot partition of a disk: its partition table, and names in a FAT file system.

It reads little, whatever the disk contains: the disk is a guest's, or somebody else's. Content that
is not of these formats is no error, and nothing is found in it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

Read = Callable[[int, int], bytes]
"""Returns bytes of a disk, from an offset; fewer at its end."""

ESP: Final = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
"""The type of an EFI system partition in a GPT (UEFI specification 2.10, table 5.7)."""

_MBR_ESP: Final = 0xEF
"""The same in an MBR (UEFI specification 2.10, section 5.2.2)."""

_SECTORS: Final = (512, 4096)
_TABLE: Final = 64 * 1024
"""Bytes of a table of partitions that are read: 512 entries, four times the usual number."""

_DIRECTORY: Final = 32
_CLUSTERS: Final = 64
"""Clusters of a directory that are read."""

_BYTES: Final = 128 * 1024
"""Bytes of a directory that are read."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk.

    Attributes:
        type: Its type in a GPT; :data:`ESP` for that of an MBR, of which no others are listed.
        start: The offset of its first byte.
    """

    type: UUID
    start: int


def partitions(read: Read) -> list[Partition]:
    """Return the partitions of a disk, by its GPT or else its MBR; a disk may have none.

    The formats are those of the UEFI specification 2.10, sections 5.2 and 5.3.
    """
    for sector in _SECTORS:
        header = read(sector, 92)
        if header[:8] == b"EFI PART" and len(header) == 92:
            return list(_gpt(read, header, sector))
    boot = read(0, 512)
    if boot[510:] != b"\x55\xaa":
        return []
    entries = (boot[at : at + 16] for at in range(446, 510, 16))
    return [
        Partition(ESP, struct.unpack_from("<I", entry, 8)[0] * 512)
        for entry in entries
        if entry[4] == _MBR_ESP
    ]


def _gpt(read: Read, header: bytes, sector: int) -> Iterator[Partition]:
    table, count, size = struct.unpack_from("<QII", header, 72)
    if size < 128:
        return
    content = read(table * sector, min(count * size, _TABLE))
    for at in range(0, len(content) - 128 + 1, size):
        kind = UUID(bytes_le=content[at : at + 16])
        if kind.int:
            yield Partition(kind, struct.unpack_from("<Q", content, at + 32)[0] * sector)


def names(read: Read, start: int, *folders: str) -> set[str]:
    """Return the short names, ``NAME.EXT``, in a folder of a FAT file system.

    The format is that of Microsoft's "FAT: General Overview of On-Disk Format" 1.03.

    Args:
        read: Reads the disk.
        start: The offset of the file system.
        folders: The path of the folder; each with a short name.

    Returns:
        The names; none if there is no such folder, or no FAT file system.
    """
    fat = _Fat.of(read, start)
    if fat is None:
        return set()
    content = fat.root()
    for folder in folders:
        number = next(
            (entry.cluster for entry in _entries(content) if entry.folder and entry.name == folder),
            None,
        )
        if number is None:
            return set()
        content = fat.content(number)
    return {entry.name for entry in _entries(content)}


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a directory."""

    name: str
    folder: bool
    cluster: int


def _entries(content: bytes) -> Iterator[_Entry]:
    for at in range(0, len(content) - _DIRECTORY + 1, _DIRECTORY):
        entry = content[at : at + _DIRECTORY]
        attributes = entry[11]
        if not entry[0]:
            return
        # Deleted; or a volume's label, or a part of a long name, which has that attribute, too.
        if entry[0] == 0xE5 or attributes & 0x08:
            continue
        stem, extension = (
            part.decode("ascii", "replace").rstrip() for part in (entry[:8], entry[8:11])
        )
        high, low = struct.unpack_from("<H", entry, 20)[0], struct.unpack_from("<H", entry, 26)[0]
        name = f"{stem}.{extension}" if extension else stem
        yield _Entry(name, bool(attributes & 0x10), high << 16 | low)


@dataclass(frozen=True, slots=True)
class _Fat:
    """A FAT file system.

    Attributes:
        read: Reads the disk.
        table: The offset of its table.
        bits: The size of an entry of the table: 12, 16 or 32.
        fixed: The offset and the size of its root directory, where that is no chain of clusters.
        first: The first cluster of its root directory, where it is one.
        data: The offset of the cluster with the number 2, the first.
        cluster: Bytes of a cluster.
    """

    read: Read
    table: int
    bits: int
    fixed: tuple[int, int]
    first: int
    data: int
    cluster: int

    @classmethod
    def of(cls, read: Read, start: int) -> _Fat | None:
        """Return the file system that begins at an offset; ``None`` if there is none."""
        boot = read(start, 512)
        if len(boot) < 512 or boot[510:] != b"\x55\xaa":
            return None
        sector, per_cluster, reserved, tables, root, sectors = struct.unpack_from(
            "<HBHBHH", boot, 11
        )
        size, large = struct.unpack_from("<H", boot, 22)[0], struct.unpack_from("<I", boot, 32)[0]
        wide, first = struct.unpack_from("<I", boot, 36)[0], struct.unpack_from("<I", boot, 44)[0]
        powers = (1 << exponent for exponent in range(8))
        if sector not in (512, 1024, 2048, 4096) or per_cluster not in powers:
            return None
        if not (reserved and 1 <= tables <= 2 and (size or wide)):
            return None
        table = start + reserved * sector
        end = table + tables * (size or wide) * sector
        data = end + -(-root * _DIRECTORY // sector) * sector
        count = (start + (sectors or large) * sector - data) // (per_cluster * sector)
        # A table of FAT32 has its size elsewhere; mkfs.fat makes them for any number of clusters.
        bits = 32 if not size else 16 if count >= 4085 else 12
        return cls(read, table, bits, (end, root * _DIRECTORY), first, data, per_cluster * sector)

    def root(self) -> bytes:
        """Return the root directory."""
        if self.bits == 32:
            return self.content(self.first)
        start, size = self.fixed
        return self.read(start, min(size, _BYTES))

    def content(self, number: int) -> bytes:
        """Return the beginning of a directory, by the number of its first cluster."""
        if self.bits != 32:
            number &= 0xFFFF
        content = b""
        for _ in range(_CLUSTERS):
            if not 2 <= number < 1 << self.bits or len(content) >= _BYTES:
                break
            content += self.read(self.data + (number - 2) * self.cluster, self.cluster)
            number = self._next(number)
        return content

    def _next(self, number: int) -> int:
        """Return the cluster that follows; a number that no cluster has at the end."""
        at = self.table + number * self.bits // 8
        entry = self.read(at, 4).ljust(4, b"\0")
        (value,) = struct.unpack("<I", entry)
        if self.bits == 32:
            return int(value) & 0x0FFFFFFF if value & 0x0FFFFFFF < 0x0FFFFFF7 else 0
        if self.bits == 16:
            return int(value) & 0xFFFF if value & 0xFFFF < 0xFFF7 else 0
        value = (int(value) >> (4 if number % 2 else 0)) & 0xFFF
        return value if value < 0xFF7 else 0
