"""Makes the disk as it would be at a point.

Points that are asked for in order share their work: what is on the disk for good at one of them is
so at each later one. That part is kept as a raw file that only moves forward; a point's disk is a
copy of it, without its holes, with the point's own survivors written over it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, Self

from harness.crash.points import Part, Point, survivors
from harness.crash.recording import Recording
from harness.errors import UsageError
from harness.qemu import disk as disks
from harness.state.save import copy_data

_CHUNK: Final = 1 << 22
_ZEROS: Final = bytes(1 << 16)


class Rebuilder:
    """Rebuilds the disk of one recording.

    Args:
        recording: A recording that is complete.
        folder: Where what the points share is kept; made if absent.
    """

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording = recording
        self.log = recording.log()
        self.seconds: dict[str, float] = {}
        """How long each point took, by its name."""
        self._shared = folder / "settled.raw"
        self._done = -1

    def build(self, point: Point, path: Path) -> Path:
        """Make the disk at a point as a raw file, and return its path.

        Args:
            point: The point.
            path: The file; replaced if it is there.

        Raises:
            UsageError: if the recording ends before the point.
            DiskFullError, StoreError: if it cannot be written.
            HostError: if ``qemu-img`` refuses.
        """
        if point.place > len(self.log.entries):
            raise UsageError(
                f"there is no point {point.name}: the recording has {len(self.log.entries)}"
                " entries",
                hint="a point's name holds for its own recording: name that with --recording",
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

    def _settle(self, wanted: int) -> None:
        """Bring the shared file to where the first ``wanted`` entries are written."""
        if self._done < 0 or wanted < self._done:
            self._shared.parent.mkdir(parents=True, exist_ok=True)
            self._done = -1
            # -U: the recording's base may have others that read it.
            base = str(self.recording.base)
            disks.qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", base, str(self._shared))
            self._done = 0
        with self._shared.open("r+b") as disk, self.log.path.open("rb") as log:
            for entry in self.log.entries[self._done : wanted]:
                if entry.changes:
                    self._apply(Part(entry, 0, entry.sectors), log.fileno(), disk.fileno())
        self._done = wanted

    def _apply(self, part: Part, log: int, disk: int) -> None:
        size = self.log.sector_size
        where = (part.entry.sector + part.skip) * size
        length = part.sectors * size
        if part.entry.discard:
            # What a discarded sector reads as is not promised; QEMU's own disks read as zeros.
            _zero(disk, where, length)
        else:
            _copy(log, part.entry.data + part.skip * size, disk, where, length)

    def close(self) -> None:
        """Remove what the points share."""
        self._shared.unlink(missing_ok=True)
        self._done = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _next_data(fd: int, offset: int, end: int) -> tuple[int, int]:
    """Return where the next data of a file begins and ends, both ``end`` if there is none."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:
        return end, end  # ENXIO: only a hole is left
    if start >= end:
        return end, end
    return start, min(os.lseek(fd, start, os.SEEK_HOLE), end)


def _zero(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeros; what is a hole stays one."""
    end = offset + length
    while offset < end:
        start, stop = _next_data(fd, offset, end)
        for place in range(start, stop, len(_ZEROS)):
            os.pwrite(fd, _ZEROS[: min(len(_ZEROS), stop - place)], place)
        offset = stop


def _copy(source: int, offset: int, target: int, where: int, length: int) -> None:
    """Copy a range between files; a hole of the source is not written where there is none to undo."""
    end = offset + length
    shift = where - offset
    while offset < end:
        start, stop = _next_data(source, offset, end)
        _zero(target, offset + shift, start - offset)
        for place in range(start, stop, _CHUNK):
            data = os.pread(source, min(_CHUNK, stop - place), place)
            os.pwrite(target, data, place + shift)
        offset = stop
