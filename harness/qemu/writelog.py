"""Reads a write log, in the format of Linux' dm-log-writes.

Linux documents the format in ``Documentation/admin-guide/device-mapper/log-writes.rst`` and
``drivers/md/dm-log-writes.c``. All numbers are little-endian. Sector 0, the super block, has the magic,
the version, the number of entries and the sector size. Then each entry has a sector of its own, followed
by its data unless it is a discard.

QEMU's driver ``blklogwrites`` writes the log in this way (``block/blklogwrites.c`` of QEMU 10.0):

* It performs a request on the disk, logs it, and only then completes it to the guest. So the log is in
  the order of completion: a write that was completed before the guest sent a flush precedes that flush.
* It does not use FUA: QEMU's block layer turns a write with FUA into a write and a flush. A guest on
  virtio-blk, which has no FUA, sends that flush itself.
* It logs a write of zeros as zeros, a hole in the log's file; a discard has no data.
* It logs a flush only if a write preceded it since the last flush: any other changes nothing.
* It updates the number of entries at each flush, and at every N-th entry; Harness sets N to 1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from harness.errors import StateError

MAGIC: Final = 0x6A736677736872
VERSION: Final = 1

FLUSH: Final = 1 << 0
FUA: Final = 1 << 1
DISCARD: Final = 1 << 2
MARK: Final = 1 << 3
_FLAGS: Final = FLUSH | FUA | DISCARD | MARK | 1 << 4  # the last is METADATA of newer kernels

_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One request that the disk completed.

    Attributes:
        sector: The first sector, in units of the log's sector size.
        sectors: The number of sectors; 0 for a flush alone.
        flags: The flags of the format.
        data: The offset of its data in the log's file, bytes.
    """

    sector: int
    sectors: int
    flags: int
    data: int

    @property
    def flush(self) -> bool:
        """Whether every request that was completed before it is durable."""
        return bool(self.flags & FLUSH)

    @property
    def fua(self) -> bool:
        """Whether the entry itself is durable."""
        return bool(self.flags & FUA)

    @property
    def discard(self) -> bool:
        """Whether it discards its sectors."""
        return bool(self.flags & DISCARD)

    @property
    def changes(self) -> bool:
        """Whether it changes the contents of the disk."""
        return self.sectors > 0 and not self.flags & MARK


@dataclass(frozen=True, slots=True)
class WriteLog:
    """The writes, flushes and discards of a disk, in the order of completion.

    Attributes:
        path: The log's file.
        sector_size: The size of a sector, bytes.
        entries: The requests.
    """

    path: Path
    sector_size: int
    entries: tuple[LogEntry, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a log; one whose writer was killed ends before the first incomplete entry.

        Raises:
            StateError: The file is not a write log, or is damaged.
            OSError: The file cannot be read.
        """
        with path.open("rb") as file:
            count, size = _read_super(path, file.read(_SUPER.size))
            end = os.fstat(file.fileno()).st_size
            entries = []
            place = size
            for number in range(count):
                file.seek(place)
                head = file.read(_ENTRY.size)
                if len(head) < _ENTRY.size:
                    break
                sector, sectors, flags, _ = _ENTRY.unpack(head)
                if flags & ~_FLAGS:
                    raise StateError(f"{path}: entry {number} has flags {flags:#x}: damaged")
                if not sectors and not flags:
                    break  # QEMU was killed after it reserved the entry and before it wrote it
                entry = LogEntry(sector, sectors, flags, place + size)
                place = entry.data
                if entry.changes and not entry.discard:
                    place += sectors * size
                if place > end:
                    break
                entries.append(entry)
        return cls(path, size, tuple(entries))

    @property
    def writes(self) -> int:
        """The number of entries that change the disk."""
        return sum(entry.changes for entry in self.entries)

    @property
    def flushes(self) -> int:
        """The number of entries that are flushes."""
        return sum(entry.flush for entry in self.entries)

    def settled(self, index: int) -> int:
        """Return the number of entries, from the first, that are durable after ``index`` entries.

        These are the entries before the last flush. A flush with data flushes before it writes
        (``REQ_PREFLUSH``), so its own data is not durable.
        """
        for number in range(index - 1, -1, -1):
            if self.entries[number].flush:
                return number
        return 0

    def pending(self, index: int) -> Sequence[LogEntry]:
        """Return the changes that no flush has followed after ``index`` entries, in order.

        Entries with FUA are among them although they are durable.
        """
        return [entry for entry in self.entries[self.settled(index) : index] if entry.changes]


def count(path: Path) -> int:
    """Return the number of entries in a log that QEMU may still write.

    Raises:
        StateError: The file is not a write log.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return _read_super(path, file.read(_SUPER.size))[0]


def _read_super(path: Path, head: bytes) -> tuple[int, int]:
    if not head:
        return 0, 512  # the guest has written nothing yet
    if len(head) < _SUPER.size:
        raise StateError(f"{path} is not a write log: it has {len(head)} bytes")
    magic, version, entries, size = _SUPER.unpack(head)
    if magic != MAGIC or version != VERSION:
        # QEMU writes the first entry before the super block.
        if not any(head):
            return 0, 512
        raise StateError(f"{path} is not a write log of version {VERSION}")
    return int(entries), int(size)
