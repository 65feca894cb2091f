"""The disks of a machine that runs: what QEMU counts of them, their recordings, their faults."""

from __future__ import annotations

from typing import Any, Final, cast

from harness.crash.recording import Recording
from harness.errors import QmpError, UsageError
from harness.qemu import disk as disks
from harness.qemu import filter as filters
from harness.qemu.argv import DiskFile
from harness.qemu.filter import Fault, Filters
from harness.qemu.qmp import Qmp
from harness.spec import Disk
from harness.state.save import copy_data

_RECORD: Final = "record"
_FAULT: Final = "fault"


class Disks:
    """The disks of a running QEMU, each by its name.

    Args:
        qmp: QEMU's monitor.
    """

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._filters = Filters(qmp)

    def statistics(self, name: str) -> dict[str, Any]:
        """Return what QEMU counts of a disk (``query-blockstats`` in its QMP reference).

        Raises:
            QmpError: if it counts nothing.
        """
        for entry in self._qmp.execute("query-blockstats"):
            # By the device: the node that it uses may be a filter's.
            if entry.get("qdev", "").startswith(f"/machine/peripheral/{name}/"):
                return cast("dict[str, Any]", entry["stats"])
        raise QmpError(f"QEMU tells no statistics of disk {name}")

    def written(self, file: DiskFile) -> list[range]:
        """Return the bytes of a disk that differ from what it began with, by clusters.

        Raises:
            HostError: if its file cannot be read.
        """
        # QEMU writes what it caches of the disk's file when it stops the guest.
        with self._qmp.standing_still():
            return disks.written(file)

    def check_recordable(self, disk: Disk, file: DiskFile) -> None:
        """Do nothing if a disk can be recorded now.

        Raises:
            UsageError: if it cannot; says why.
        """
        if disk.readonly or file.format != "qcow2":
            raise UsageError(
                f"disk {disk.name} cannot be recorded: it is written in place or not at all"
            )
        if self._filters.has(disk.name, _FAULT):
            raise UsageError(f"disk {disk.name} cannot be recorded while it fails: heal it first")

    def record(self, made: Recording, file: DiskFile) -> None:
        """Begin a recording: the guest stands still while the disk as it is now is kept.

        Args:
            made: The recording; its folder is new.
            file: The file behind the disk.

        Raises:
            UsageError: if the disk is recorded already.
            QmpError: if QEMU refuses.
            DiskFullError, StoreError: if the recording cannot be written.
        """
        # QEMU writes what it caches of the disk's file when it stops the guest.
        with self._qmp.standing_still():
            try:
                made.folder.mkdir(parents=True)
                with file.path.open("rb") as source, made.base.open("xb") as target:
                    copy_data(source.fileno(), target.fileno())
                made.path.touch()
                made.save()
                options = filters.recorder(self._filters.top(made.disk), made.path)
                self._filters.insert(made.disk, _RECORD, options)
            except OSError as error:
                raise disks.disk_full(error, made.folder) from error

    def end_recording(self, name: str) -> None:
        """Record a disk no longer.

        Raises:
            UsageError: if something else was put on top of the recording.
        """
        self._filters.remove(name, _RECORD)

    def fail(self, name: str, fault: Fault) -> None:
        """Let a disk fail from now on.

        Raises:
            UsageError: if it fails already, or the fault is none.
        """
        self._filters.insert(name, _FAULT, filters.faulty(self._filters.top(name), fault))

    def heal(self, name: str) -> None:
        """Let a disk work again.

        Raises:
            UsageError: if it does not fail.
        """
        self._filters.remove(name, _FAULT)
