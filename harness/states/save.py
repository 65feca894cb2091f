"""Saves a machine: its device state by QEMU's migration, its RAM and disks as files.

QEMU leaves RAM in a shared file out of the migration stream (capability ``x-ignore-shared``,
``docs/devel/migration/features`` of QEMU), so the stream has only some megabytes. A saveable machine has
its RAM in a memory file (``memfd_create(2)``): no page is written to a disk while the machine runs, and
pages that the guest never touched stay holes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from harness.cache.space import explained
from harness.deadline import NEVER, Deadline
from harness.errors import QmpError, SnapshotError
from harness.qemu import disk as disks
from harness.qemu.argv import Allocations, DiskFile
from harness.qemu.qmp import Event, Qmp
from harness.spec import MachineSpec
from harness.states.snapshot import (
    DEVICES,
    RAM,
    TPM,
    VARIABLES,
    Seal,
    Snapshot,
)

_ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_PART: Final = 1 << 30
_BLOCK: Final = 64 * 1024


@dataclass(slots=True)
class Memory:
    """A machine's RAM in a memory file that Harness has open, too.

    Attributes:
        fd: The descriptor of the memory file.
        size: Bytes.
    """

    fd: int
    size: int

    @classmethod
    def create(cls, name: str, size: int, content: Path | None = None) -> Memory:
        """Make a memory file: of zeros, or with the content of a file of saved RAM."""
        fd = os.memfd_create(f"harness-{name}", os.MFD_CLOEXEC)
        try:
            if content is None:
                os.ftruncate(fd, size)
            else:
                with content.open("rb") as source:
                    copy_data(source.fileno(), fd)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, size)

    def close(self) -> None:
        """Close the file; QEMU keeps it open while it runs."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def copy_data(source: int, target: int) -> None:
    """Copy a file into an empty one without its holes (``lseek(2)``, SEEK_DATA).

    A file system that does not report holes calls everything data, or lacks SEEK_DATA; there, blocks of
    zeros are left out.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            start, end = 0, size
        if (start, end) == (0, size):
            _copy_blocks(source, target, size)
            return
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            start += os.sendfile(target, source, start, min(end - start, _PART))
        offset = end


def _copy_blocks(source: int, target: int, size: int) -> None:
    """Copy a file by reading it, without blocks of zeros."""
    zeros = bytes(_BLOCK)
    offset = 0
    while offset < size and (part := os.pread(source, _BLOCK, offset)):
        if part != zeros[: len(part)]:
            written = 0
            while written < len(part):
                written += os.pwrite(target, part[written:], offset + written)
        offset += len(part)


def check_disks(spec: MachineSpec) -> None:
    """Raise if a disk cannot be part of a snapshot.

    Raises:
        SnapshotError: A disk is written in place; names it.
    """
    for disk in spec.disks:
        if disk.in_place and not disk.readonly:
            raise SnapshotError(
                f"machine {spec.name} cannot be saved: its disk {disk.name} is written in place",
                hint="pass the disk without in_place; the machine then writes to an overlay",
            )


def migrate(qmp: Qmp, target: Path, limit: Deadline) -> None:
    """Write the device state of a machine that stands still to a file.

    Raises:
        SnapshotError: A device forbids it; QEMU's message names the device.
        OSError: The disk is full.
        WaitTimeoutError: The deadline passed.
    """
    blocked = qmp.execute("query-migrate", deadline=limit).get("blocked-reasons", [])
    if blocked:
        raise SnapshotError(f"machine {qmp.name} cannot be saved: {'; '.join(blocked)}")
    capabilities = [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]
    qmp.execute("migrate-set-capabilities", {"capabilities": capabilities}, deadline=limit)
    qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40}, deadline=limit)
    mark = qmp.mark()
    try:
        qmp.execute("migrate", {"uri": f"file:{target}"}, deadline=limit)
        ended = qmp.wait(["MIGRATION"], limit, since=mark, accept=has_ended)
    except QmpError as error:
        raise SnapshotError(f"machine {qmp.name} cannot be saved: {error.what}") from error
    if ended.data["status"] != "completed":
        why = qmp.execute("query-migrate", deadline=limit).get("error-desc", ended.data["status"])
        if os.strerror(errno.ENOSPC) in why:
            raise OSError(errno.ENOSPC, why, str(target))
        raise SnapshotError(f"machine {qmp.name} cannot be saved: {why}")


def has_ended(event: Event) -> bool:
    """Return whether an event of QEMU reports the end of a migration."""
    return event.data.get("status") in _ENDED


class Save(Protocol):
    """A machine that is being saved, in three steps.

    One machine takes them one after the other. Machines that are saved together take each step together,
    so that none is ended before all can be saved.
    """

    def stop(self) -> Callable[[], object]:
        """Have the guest stopped, and return a function that waits until it stands still."""

    def write(self) -> None:
        """Save the RAM and the device state of the machine, which stands still.

        Raises:
            SnapshotError: A device forbids it.
            DiskFullError, StoreError: The folder cannot be written.
        """

    def finish(self) -> Snapshot:
        """End the machine if this is final; save its disks and return the snapshot.

        Raises:
            DiskFullError, StoreError, HostError: As :func:`finish`.
        """


def write(qmp: Qmp, draft: Snapshot, memory: Memory, limit: Deadline) -> None:
    """Save the RAM and device state of a machine that stands still into the folder of ``draft``.

    Raises:
        SnapshotError: A device forbids it.
        DiskFullError, StoreError: The folder cannot be written.
    """
    folder = draft.folder
    with explained(folder, "saving a machine"):
        folder.mkdir(parents=True, exist_ok=True)
        migrate(qmp, folder / DEVICES, limit)
        with (folder / RAM).open("xb") as target:
            copy_data(memory.fd, target.fileno())


def finish(
    draft: Snapshot,
    allocations: Allocations,
    *,
    inside: Path,
    move: bool,
    limit: Deadline = NEVER,
) -> Snapshot:
    """Save disks and variables, and write the manifest.

    Args:
        draft: The snapshot without seals.
        allocations: The allocations of the machine.
        inside: The root of the cache. Bases below it stay in their place. Other bases may be removed
            at any time, so their content becomes part of the snapshot.
        move: Whether the machine has ended and does not need its files any more.
        limit: When to give up.

    Raises:
        DiskFullError, StoreError: The folder cannot be written.
        HostError: ``qemu-img`` failed.
        WaitTimeoutError: The deadline passed.
    """
    folder = draft.folder
    with explained(folder, "saving a machine"):
        (folder / "disks").mkdir(parents=True, exist_ok=True)
        needed = [path for path in (draft.spec.firmware.kernel, draft.spec.firmware.initrd) if path]
        for disk in draft.spec.disks:
            file = allocations.disks[disk.name]
            if disk.readonly:
                needed.append(file.path)
                continue
            target = folder / "disks" / f"{disk.name}.qcow2"
            needed += _save_disk(file, target, inside, move, limit)
        if allocations.variables is not None:
            shutil.copyfile(allocations.variables, folder / VARIABLES)
        if allocations.tpm_state is not None and draft.cold:
            shutil.copytree(allocations.tpm_state, folder / TPM)
        bases = tuple((str(path), Seal.of(path)) for path in dict.fromkeys(needed))
        return replace(draft, saved=time.time(), bases=bases).write()


def _save_disk(
    file: DiskFile, target: Path, inside: Path, move: bool, limit: Deadline = NEVER
) -> list[Path]:
    """Save one disk; return its bases that do not become part of the snapshot."""
    output = disks.qemu_img(
        *("info", "-U", "--backing-chain", "--output=json", "-f", file.format, str(file.path)),
        limit=limit,
    )
    chain: list[dict[str, Any]] = json.loads(output)
    below = [(Path(image["filename"]), str(image["format"])) for image in chain[1:]]
    kept = 0
    while kept < len(below) and below[-1 - kept][0].is_relative_to(inside):
        kept += 1
    loose = below[: len(below) - kept]
    bases = below[len(below) - kept :]
    if file.format != "qcow2" or (loose and not bases):
        # The whole content becomes part of the snapshot. Rebasing onto nothing would do that, too, but
        # it reads the holes of the bases.
        disks.qemu_img(
            *("convert", "-U", "-f", file.format, "-O", "qcow2", str(file.path), str(target)),
            limit=limit,
        )
        return []
    if move:
        shutil.move(file.path, target)
    else:
        with file.path.open("rb") as source, target.open("xb") as sink:
            copy_data(source.fileno(), sink.fileno())
    if loose:
        # Rebasing copies the content of the loose bases. (qemu-img convert -B would drop it.)
        path, kind = bases[0]
        disks.qemu_img(
            "rebase", "-f", "qcow2", "-b", str(path), "-F", kind, str(target), limit=limit
        )
    return [path for path, _ in bases]
