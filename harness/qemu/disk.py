"""Disk files, created and read by ``qemu-img(1)``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from harness.deadline import NEVER, Deadline, run
from harness.errors import DiskFullError, HostError, StoreError, UsageError, WaitTimeoutError
from harness.qemu import image_format
from harness.qemu.argv import DiskFile
from harness.spec import Disk, format_size

_CHUNK: Final = 4 * 1024 * 1024


def create(disk: Disk, directory: Path) -> DiskFile:
    """Return the file that a machine uses for ``disk``; creates an overlay or a blank disk if needed.

    Raises:
        UsageError: The disk's base does not exist, or is not of the declared format.
        DiskFullError: The host has no space left.
        HostError: ``qemu-img`` is missing or failed.
    """
    if disk.base is not None and not disk.base.is_file():
        raise UsageError(f"disk {disk.name}: {disk.base} does not exist")
    if disk.base is not None:
        try:
            image_format.check(
                disk.base,
                disk.format,
                f"disk {disk.name}",
                boots=disk.boot_index is not None,
                readonly=disk.readonly,
            )
        except OSError as error:
            raise UsageError(f"disk {disk.name}: {disk.base} cannot be read: {error}") from error
    if disk.base is not None and (disk.in_place or disk.readonly):
        return DiskFile(disk.base, disk.format)
    path = directory / f"{disk.name}.qcow2"
    command = ["create", "-q", "-f", "qcow2"]
    if disk.base is not None:
        command += ["-b", str(disk.base.resolve()), "-F", disk.format]
    command.append(str(path))
    if disk.size is not None:
        command.append(str(disk.size))
    qemu_img(*command)
    return DiskFile(path, "qcow2")


def digest(file: DiskFile) -> str:
    """Return the SHA-256, in hexadecimal, of the disk's content as a guest reads it.

    Raises:
        HostError: The file cannot be read.
    """
    hasher = hashlib.sha256()
    if file.format == "raw":
        with file.path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest()
    flat = file.path.with_suffix(".flat")
    try:
        # -U: the machine may have the file open. Writes during the copy may or may not be included.
        qemu_img("convert", "-U", "-O", "raw", "-f", file.format, str(file.path), str(flat))
        return digest(DiskFile(flat, "raw"))
    finally:
        flat.unlink(missing_ok=True)


def written(file: DiskFile) -> list[range]:
    """Return the byte ranges, in whole clusters, that the disk's own file holds and not its base.

    ``qemu-img map`` reports depth 0 for the file itself. Discarded ranges are included, as zeros;
    ranges of a blank disk that were never written are not.

    Raises:
        HostError: The file cannot be read.
    """
    output = qemu_img("map", "--output=json", "-U", "-f", file.format, str(file.path))
    return [
        range(extent["start"], extent["start"] + extent["length"])
        for extent in json.loads(output)
        if extent["depth"] == 0 and extent["present"]
    ]


def virtual_size(file: DiskFile) -> int:
    """Return the disk's size in bytes as a guest sees it."""
    output = qemu_img("info", "--output=json", "-U", "-f", file.format, str(file.path))
    return int(json.loads(output)["virtual-size"])


def qemu_img(*arguments: str, limit: Deadline = NEVER) -> str:
    """Run ``qemu-img`` and return its standard output.

    Args:
        arguments: Its arguments.
        limit: When it is killed.

    Raises:
        DiskFullError: The host has no space left.
        HostError: ``qemu-img`` is missing or failed; carries its message.
        WaitTimeoutError: The deadline passed.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError("qemu-img is not installed", hint="install the package qemu-utils")
    try:
        ended = run([program, *arguments], limit)
    except subprocess.TimeoutExpired as error:
        raise WaitTimeoutError(f"qemu-img {arguments[0]}", limit) from error
    if ended.returncode == 0:
        return os.fsdecode(ended.stdout)
    message = os.fsdecode(ended.stderr or ended.stdout).strip()
    if "No space left on device" in message:
        raise DiskFullError(f"qemu-img {arguments[0]}: no space left", evidence=message)
    raise HostError(f"qemu-img {arguments[0]} failed", evidence=message)


def disk_full(error: OSError, path: Path) -> StoreError:
    """Return the error to raise for a write to ``path`` that failed with ``error``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        return DiskFullError(
            f"no space left for {path}: {format_size(free)} free",
            hint="free some space, or run 'harness images gc'",
        )
    return StoreError(f"{path} cannot be written: {error}")
