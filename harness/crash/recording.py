"""What a machine keeps of a disk's writes: the disk as it was, and all it was told from then on.

A folder::

    base.qcow2       the disk when the recording began; what lies below it stays where it was
    log              every write, flush and discard since (:mod:`harness.crash.log`)
    recording.json   the disk's name and the marks
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from harness import jsonfile
from harness.crash import log as logs
from harness.crash.log import WriteLog
from harness.errors import StateError, UnknownNameError
from harness.qemu import disk as disks

BASE: Final = "base.qcow2"
LOG: Final = "log"
RECORD: Final = "recording.json"


@dataclass
class Recording:
    """A recording, complete or still going on.

    Attributes:
        folder: Where it is.
        disk: The name of the disk among its machine's.
        serial: The disk's serial.
        marks: How many entries the log had at each mark, by name.
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

        All that the guest was told to be written before is before the mark.
        """
        self.marks[name] = logs.count(self.path)
        self.save()
        return self.marks[name]

    def at(self, name: str) -> int:
        """Return how many entries are before a mark.

        Raises:
            UnknownNameError: if there is no such mark.
        """
        if name not in self.marks:
            raise UnknownNameError("mark", name, self.marks)
        return self.marks[name]

    def log(self) -> WriteLog:
        """Read the log. Of a machine that runs, its last entries may not be whole: end it first.

        Raises:
            StateError: if it is damaged.
        """
        try:
            return WriteLog.read(self.path)
        except OSError as error:
            raise StateError(f"the recording's log cannot be read: {error}") from error

    def pack(self) -> None:
        """Let a complete recording need no other file, and no more space than its data.

        The base takes in what lies below it. What is logged of zeros takes space on some hosts; the
        log is copied without them.

        Raises:
            DiskFullError, StoreError: if it cannot be written.
            HostError: if ``qemu-img`` refuses.
        """
        for path, kind in ((self.base, "qcow2"), (self.path, "raw")):
            new = path.with_name(f"{path.name}.new")
            disks.qemu_img("convert", "-U", "-f", kind, "-O", kind, str(path), str(new))
            try:
                new.replace(path)
            except OSError as error:
                raise disks.disk_full(error, self.folder) from error

    def save(self) -> None:
        """Write down what is not in the other files."""
        told = {"disk": self.disk, "serial": self.serial, "marks": self.marks}
        jsonfile.write(self.folder / RECORD, told)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the recording in a folder.

        Raises:
            StateError: if there is none that is whole.
        """
        path = folder / RECORD
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            marks = {str(name): int(place) for name, place in told["marks"].items()}
            made = cls(folder, str(told["disk"]), str(told["serial"]), marks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"{path} is missing or damaged: {error!r}") from error
        for each in (made.base, made.path):
            if not each.is_file():
                raise StateError(f"{folder} is no recording: {each.name} is missing")
        return made
