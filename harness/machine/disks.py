"""The disks of a running machine: QEMU's statistics of them, their recordings, their faults."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from harness.console.complaints import DISK
from harness.errors import QmpError, UnknownNameError, UsageError
from harness.machine.parts import Parts
from harness.machine.recording import Recording
from harness.qemu import disk as files
from harness.qemu import filter as filters
from harness.qemu.argv import DiskFile
from harness.qemu.filter import Fault, Filters
from harness.states.save import copy_data

_RECORD: Final = "record"
_FAULT: Final = "fault"


class Disks:
    """The disks of one running machine; :class:`~harness.machine.Machine` documents the words.

    Args:
        parts: The machine's parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._filters = Filters(parts.qmp)

    def file(self, name: str) -> DiskFile:
        """Return the file behind a disk.

        Raises:
            UnknownNameError: The machine has no such disk.
        """
        disks = self._parts.allocations.disks
        if name not in disks:
            raise UnknownNameError("disk", name, disks)
        return disks[name]

    def writes(self, name: str) -> int:
        """Return how many writes and discards the guest has sent to a disk since power on."""
        stats = self._statistics(name)
        return int(stats["wr_operations"]) + int(stats["unmap_operations"])

    def errors(self, name: str) -> int:
        """Return how many requests of the guest a disk has failed since power on."""
        stats = self._statistics(name)
        return sum(
            int(stats[f"failed_{kind}_operations"]) for kind in ("rd", "wr", "unmap", "flush")
        )

    def written(self, name: str) -> list[range]:
        """Return the bytes of a disk that differ from its base, by clusters."""
        file = self.file(name)
        if file.format != "qcow2":
            raise UsageError(f"disk {name} has no overlay that shows its written bytes")
        # QEMU writes its cache of the disk's file when it stops the guest.
        with self._parts.qmp.standing_still():
            return files.written(file)

    @contextlib.contextmanager
    def recording(self, name: str, folder: Path | None) -> Iterator[Recording]:
        """Record every write, flush and discard of a disk while the block runs."""
        parts = self._parts
        file = self.file(name)
        disk = next(disk for disk in parts.spec.disks if disk.name == name)
        if disk.readonly or file.format != "qcow2":
            raise UsageError(
                f"disk {name} cannot be recorded: it is written in place or not at all"
            )
        if self._filters.has(name, _FAULT):
            raise UsageError(f"disk {name} cannot be recorded while it fails: heal it first")
        folder = folder or parts.evidence / f"recording-{name}"
        recording = Recording(folder, name, disk.guest_serial)
        with parts.timeline.step("record", machine=parts.name, disk=name):
            self._begin(recording, file)
        try:
            yield recording
        finally:
            if parts.process.running:
                self.end_recording(name)
            recording.mark("end")

    def _begin(self, recording: Recording, file: DiskFile) -> None:
        # QEMU writes its cache of the disk's file when it stops the guest.
        with self._parts.qmp.standing_still():
            try:
                recording.folder.mkdir(parents=True)
                with file.path.open("rb") as source, recording.base.open("xb") as target:
                    copy_data(source.fileno(), target.fileno())
                recording.path.touch()
                recording.save()
                options = filters.recorder(self._filters.top(recording.disk), recording.path)
                self._filters.insert(recording.disk, _RECORD, options)
            except OSError as error:
                raise files.disk_full(error, recording.folder) from error

    def end_recording(self, name: str) -> None:
        """Stop recording a disk.

        Raises:
            UsageError: Another filter lies on top of the recording.
        """
        self._filters.remove(name, _RECORD)

    def fail(self, name: str, fault: Fault) -> None:
        """Let a disk fail from now on."""
        parts = self._parts
        self.file(name)
        # Also after heal(): a file system that has lost a write complains for a long time.
        parts.console.findings.expect(DISK)
        with parts.timeline.step("disk fault", machine=parts.name, disk=name, fault=str(fault)):
            self._filters.insert(name, _FAULT, filters.faulty(self._filters.top(name), fault))

    def heal(self, name: str) -> None:
        """Let a disk work again."""
        parts = self._parts
        with parts.timeline.step("heal disk", machine=parts.name, disk=name):
            self._filters.remove(name, _FAULT)

    @contextlib.contextmanager
    def slow(self, name: str, *, requests: float | None, rate: int | None) -> Iterator[None]:
        """Let a disk be slow in the block (``block_set_io_throttle`` in QEMU's QMP reference)."""
        parts = self._parts
        self.file(name)
        if not (requests or rate) or (requests or 1) < 0 or (rate or 1) < 0:
            raise UsageError(
                f"disk {name}: a slow disk has a limit above 0",
                hint="requests=10 for ten a second, or rate=1 * MIB for bytes a second",
            )
        # A kernel says so when a request takes minutes.
        parts.console.findings.expect(DISK)
        with parts.timeline.step(
            "slow disk", machine=parts.name, disk=name, requests=requests, rate=rate
        ):
            self._throttle(name, requests or 0, rate or 0)
            try:
                yield
            finally:
                if parts.running:
                    self._throttle(name, 0, 0)

    def _throttle(self, name: str, requests: float, rate: int) -> None:
        """Limit a disk; 0 is no limit."""
        # QEMU takes whole numbers only, and 0 for none.
        limits = {"iops": math.ceil(requests), "bps": rate}
        rest = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
        path = f"/machine/peripheral/{name}/virtio-backend"
        self._parts.qmp.execute("block_set_io_throttle", {"id": path, **limits, **rest})

    def _statistics(self, name: str) -> dict[str, Any]:
        """Return QEMU's statistics of a disk (``query-blockstats`` in its QMP reference)."""
        self.file(name)
        for entry in self._parts.qmp.execute("query-blockstats"):
            # By the device: the node that it uses may be a filter's.
            if entry.get("qdev", "").startswith(f"/machine/peripheral/{name}/"):
                return cast("dict[str, Any]", entry["stats"])
        raise QmpError(f"QEMU reports no statistics of disk {name}")
