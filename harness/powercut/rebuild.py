"""Rebuilds the disk at a crash point.

Points that are rebuilt in order share their work, because a write that is durable at one point is
durable at each later one. The durable writes are kept in a raw file that moves forward. A point's disk
is a sparse copy of that file, to which the surviving pending writes are added.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, Self

from harness.errors import UsageError
from harness.machine.recording import Recording
from harness.powercut.points import Part, Point, survivors
from harness.qemu import disk as disks
from harness.states.save import copy_data

_CHUNK: Final = 1 << 22
_ZEROS: Final = bytes(1 << 16)


class Rebuilder:
    """Rebuilds the disk of one recording.

    Args:
        recording: A complete recording.
        folder: The folder for the file that the points share; created if it does not exist.
    """

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording = recording
        self.log = recording.log()
        self.seconds: dict[str, float] = {}
        """The duration of each rebuild, seconds, by the name of the point."""
        self._shared = folder / "settled.raw"
        self._applied = -1

    def build(self, point: Point, path: Path) -> Path:
        """Build the disk at a point as a raw file, and return its path.

        Args:
            point: The point.
            path: The file; an existing file is replaced.

        Raises:
            UsageError: The recording ends before the point.
            DiskFullError, StoreError: The disk cannot be written.
            HostError: ``qemu-img`` refused.
        """
        if point.place > len(self.log.entries):
            raise UsageError(
                f"there is no point {point.name}: the recording has {len(self.log.entries)}"
                " entries",
                hint="a point belongs to one recording: name that recording with --recording",
            )
        began = time.monotonic()
        try:
            self._settle(self.log.settled(point.place))
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                self._shared.open("rb") as settled,
                path.open("w+b") as disk,
                self.log.path.open("rb") as log,
            ):
                copy_data(settled.fileno(), disk.fileno())
                for part in survivors(self.log.pending(point.place), point):
                    self._apply(part, log.fileno(), disk.fileno())
        except OSError as error:
            raise disks.disk_full(error, path) from error
        self.seconds[point.name] = time.monotonic() - began
        return path

    def _settle(self, target: int) -> None:
        """Bring the shared file to the state in which the first ``target`` entries are written."""
        if self._applied < 0 or target < self._applied:
            self._shared.parent.mkdir(parents=True, exist_ok=True)
            self._applied = -1
            # -U: another process may have the recording's base open.
            base = str(self.recording.base)
            disks.qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", base, str(self._shared))
            self._applied = 0
        with self._shared.open("r+b") as disk, self.log.path.open("rb") as log:
            for entry in self.log.entries[self._applied : target]:
                if entry.changes:
                    self._apply(Part(entry, 0, entry.sectors), log.fileno(), disk.fileno())
        self._applied = target

    def _apply(self, part: Part, log: int, disk: int) -> None:
        size = self.log.sector_size
        where = (part.entry.sector + part.skip) * size
        length = part.sectors * size
        if part.entry.discard:
            # A discarded sector may read as anything; QEMU's own disks return zeros.
            _zero(disk, where, length)
        else:
            _copy(log, part.entry.data + part.skip * size, disk, where, length)

    def close(self) -> None:
        """Remove the file that the points share."""
        self._shared.unlink(missing_ok=True)
        self._applied = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _next_data(fd: int, offset: int, end: int) -> tuple[int, int]:
    """Return the beginning and the end of the next data of a file; ``end`` twice if there is none."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:
        return end, end  # ENXIO: the rest is a hole
    if start >= end:
        return end, end
    return start, min(os.lseek(fd, start, os.SEEK_HOLE), end)


def _zero(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeros; holes stay holes."""
    end = offset + length
    while offset < end:
        start, stop = _next_data(fd, offset, end)
        for place in range(start, stop, len(_ZEROS)):
            os.pwrite(fd, _ZEROS[: min(len(_ZEROS), stop - place)], place)
        offset = stop


def _copy(source: int, offset: int, target: int, where: int, length: int) -> None:
    """Copy a range between files; a hole of the source zeroes the target's data and keeps its holes."""
    end = offset + length
    shift = where - offset
    while offset < end:
        start, stop = _next_data(source, offset, end)
        _zero(target, offset + shift, start - offset)
        for place in range(start, stop, _CHUNK):
            data = os.pread(source, min(_CHUNK, stop - place), place)
            os.pwrite(target, data, place + shift)
        offset = stop
