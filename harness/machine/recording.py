"""A recording of a disk's writes: the disk as it was, and every request to it from then on.

A folder::

    base.qcow2       the disk when the recording began; its own bases stay where they were
    log              every write, flush and discard since (:mod:`harness.qemu.writelog`)
    recording.json   the disk's name and the marks
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from harness import jsonfile
from harness.errors import StateError, UnknownNameError
from harness.qemu import disk as disks
from harness.qemu import writelog as logs
from harness.qemu.writelog import WriteLog

BASE: Final = "base.qcow2"
LOG: Final = "log"
RECORD: Final = "recording.json"


@dataclass
class Recording:
    """A recording, complete or still going on.

    Attributes:
        folder: Its folder.
        disk: The disk's name in its machine's spec.
        serial: The disk's serial.
        marks: The number of entries that the log had at each mark, by the mark's name.
    """

    folder: Path
    disk: str
    serial: str
    marks: dict[str, int] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The disk as it was when the recording began, a qcow2."""
        return self.folder / BASE

    @property
    def path(self) -> Path:
        """The log's file."""
        return self.folder / LOG

    def mark(self, name: str) -> int:
        """Remember this moment under a name; return how many entries the log has.

        Every write that the disk has reported to the guest as done is before the mark.
        """
        self.marks[name] = logs.count(self.path)
        self.save()
        return self.marks[name]

    def at(self, name: str) -> int:
        """Return how many entries are before a mark.

        Raises:
            UnknownNameError: There is no such mark.
        """
        if name not in self.marks:
            raise UnknownNameError("mark", name, self.marks)
        return self.marks[name]

    def log(self) -> WriteLog:
        """Read the log. While the machine runs, the last entries may be incomplete: end it first.

        Raises:
            StateError: The log is damaged.
        """
        try:
            return WriteLog.read(self.path)
        except OSError as error:
            raise StateError(f"the recording's log cannot be read: {error}") from error

    def pack(self) -> None:
        """Make a complete recording independent of other files, and no larger than its data.

        The base absorbs its own bases. Logged zeros take space on some hosts; the log is copied without
        them.

        Raises:
            DiskFullError, StoreError: The recording cannot be written.
            HostError: ``qemu-img`` refused.
        """
        for path, kind in ((self.base, "qcow2"), (self.path, "raw")):
            new = path.with_name(f"{path.name}.new")
            disks.qemu_img("convert", "-U", "-f", kind, "-O", kind, str(path), str(new))
            try:
                new.replace(path)
            except OSError as error:
                raise disks.disk_full(error, self.folder) from error

    def save(self) -> None:
        """Write ``recording.json``."""
        content = {"disk": self.disk, "serial": self.serial, "marks": self.marks}
        jsonfile.write(self.folder / RECORD, content)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the recording in a folder.

        Raises:
            StateError: The recording is missing, damaged or incomplete.
        """
        path = folder / RECORD
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            marks = {str(name): int(place) for name, place in content["marks"].items()}
            recording = cls(folder, str(content["disk"]), str(content["serial"]), marks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"{path} is missing or damaged: {error!r}") from error
        for file in (recording.base, recording.path):
            if not file.is_file():
                raise StateError(f"{folder} is no recording: {file.name} is missing")
        return recording
