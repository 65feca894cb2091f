"""Reads a log of writes, in the format of Linux' dm-log-writes.

The format: ``Documentation/admin-guide/device-mapper/log-writes.rst`` and
``drivers/md/dm-log-writes.c`` of Linux. All is little-endian. Sector 0 has the magic, the version, the
number of entries and the sector's size; then each entry has a sector of its own, and behind it the
data that was written, unless it is a discard.

What QEMU's driver ``blklogwrites`` makes of it (``block/blklogwrites.c`` of QEMU 10.0):

* A request is done on the disk first, then logged, and only then completed to the guest. So the log
  is in the order of completion, and what the guest knew to be written before it sent a flush stands
  before that flush.
* It takes no FUA: QEMU's block layer makes a write with FUA a write and a flush. A guest on
  virtio-blk, which has no FUA, sends that flush itself.
* Writes of zeros are logged as zeros, a hole in the log's file; discards have no data.
* A flush after which nothing was written is not logged again: it changes nothing.
* The number of entries is written at each flush, and at every N-th entry otherwise; Harness says 1.
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
_KNOWN: Final = FLUSH | FUA | DISCARD | MARK | 1 << 4  # the last is METADATA, of newer kernels

_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that the disk completed.

    Attributes:
        sector: Where it begins, in sectors of the log.
        sectors: How many it covers; 0 of a flush alone.
        flags: As the format has them.
        data: Where its data begins in the log's file, in bytes.
    """

    sector: int
    sectors: int
    flags: int
    data: int

    @property
    def flush(self) -> bool:
        """Whether all that was completed before it is on the disk for good."""
        return bool(self.flags & FLUSH)

    @property
    def fua(self) -> bool:
        """Whether it is itself on the disk for good."""
        return bool(self.flags & FUA)

    @property
    def discard(self) -> bool:
        """Whether it discards what it covers."""
        return bool(self.flags & DISCARD)

    @property
    def changes(self) -> bool:
        """Whether it changes what is on the disk."""
        return self.sectors > 0 and not self.flags & MARK


@dataclass(frozen=True, slots=True)
class WriteLog:
    """All that a disk was told to write, in the order of completion.

    Attributes:
        path: The log's file.
        sector_size: Bytes.
        entries: The requests.
    """

    path: Path
    sector_size: int
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a log; of one whose writer was killed, all up to the first entry that is not whole.

        Raises:
            StateError: if it is not such a log.
            OSError: if it cannot be read.
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
                if flags & ~_KNOWN:
                    raise StateError(f"{path}: entry {number} has flags {flags:#x}: damaged")
                if not sectors and not flags:
                    break  # a place that was taken, and not written when QEMU was killed
                entry = Entry(sector, sectors, flags, place + size)
                place = entry.data
                if entry.changes and not entry.discard:
                    place += sectors * size
                if place > end:
                    break
                entries.append(entry)
        return cls(path, size, tuple(entries))

    @property
    def writes(self) -> int:
        """How many entries change the disk."""
        return sum(entry.changes for entry in self.entries)

    @property
    def flushes(self) -> int:
        """How many entries are flushes."""
        return sum(entry.flush for entry in self.entries)

    def settled(self, index: int) -> int:
        """Return how many entries, from the first, are on the disk for good after ``index`` entries.

        These are the ones before the last flush. One that has data of its own flushes before it
        writes (``REQ_PREFLUSH``), so that this data is not among them.
        """
        for number in range(index - 1, -1, -1):
            if self.entries[number].flush:
                return number
        return 0

    def pending(self, index: int) -> Sequence[Entry]:
        """Return the changes that are done after ``index`` entries and not flushed, in order.

        Those with FUA are among them, and are on the disk for good nevertheless.
        """
        return [entry for entry in self.entries[self.settled(index) : index] if entry.changes]


def count(path: Path) -> int:
    """Return how many entries a log has now, while QEMU writes it; 0 before the first.

    Raises:
        StateError: if it is not such a log.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return _read_super(path, file.read(_SUPER.size))[0]


def _read_super(path: Path, head: bytes) -> tuple[int, int]:
    if not head:
        return 0, 512  # nothing was written yet
    if len(head) < _SUPER.size:
        raise StateError(f"{path} is no log of writes: it has {len(head)} bytes")
    magic, version, entries, size = _SUPER.unpack(head)
    if magic != MAGIC or version != VERSION:
        # The first entry is written before the head.
        if not any(head):
            return 0, 512
        raise StateError(f"{path} is no log of writes that is known here")
    return int(entries), int(size)
