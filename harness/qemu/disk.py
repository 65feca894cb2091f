"""Disk files, made by ``qemu-img(1)``."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from harness.errors import DiskFullError, HostError, StoreError, UsageError
from harness.qemu.argv import DiskFile
from harness.spec import Disk, format_size

_CHUNK: Final = 4 * 1024 * 1024


def create(disk: Disk, directory: Path) -> DiskFile:
    """Make the file that a machine writes to for ``disk``: an overlay, or a blank disk.

    Raises:
        UsageError: if the disk's base does not exist.
        DiskFullError: if no space is left.
        HostError: if ``qemu-img`` is missing or refuses.
    """
    if disk.base is not None and not disk.base.is_file():
        raise UsageError(f"disk {disk.name}: {disk.base} does not exist")
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
    """Return the SHA-256 of what a guest would read from the disk, in hexadecimal.

    Raises:
        HostError: if the file cannot be read.
    """
    hasher = hashlib.sha256()
    if file.format == "raw":
        with file.path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest()
    flat = file.path.with_suffix(".flat")
    try:
        # -U: the machine may have it open. What it writes meanwhile may be in the digest or not.
        qemu_img("convert", "-U", "-O", "raw", "-f", file.format, str(file.path), str(flat))
        return digest(DiskFile(flat, "raw"))
    finally:
        flat.unlink(missing_ok=True)


def written(file: DiskFile) -> list[range]:
    """Return the bytes of a disk that its own file has, not what is below it: by whole clusters.

    ``qemu-img map`` tells them by depth, 0 for the file itself. Discarded ones are there as zeros; what
    was never written to a blank disk is not.

    Raises:
        HostError: if the file cannot be read.
    """
    told = qemu_img("map", "--output=json", "-U", "-f", file.format, str(file.path))
    return [
        range(each["start"], each["start"] + each["length"])
        for each in json.loads(told)
        if each["depth"] == 0 and each["present"]
    ]


def virtual_size(file: DiskFile) -> int:
    """Return the bytes that a guest sees."""
    told = qemu_img("info", "--output=json", "-U", "-f", file.format, str(file.path))
    return int(json.loads(told)["virtual-size"])


def qemu_img(*arguments: str) -> str:
    """Run ``qemu-img`` and return what it printed.

    Raises:
        DiskFullError: if no space is left.
        HostError: if it is missing or refuses; carries its words.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError("qemu-img is not installed", hint="install the package qemu-utils")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    words = (done.stderr or done.stdout).strip()
    if "No space left on device" in words:
        raise DiskFullError(f"qemu-img {arguments[0]}: no space left", evidence=words)
    raise HostError(f"qemu-img {arguments[0]} failed", evidence=words)


def disk_full(error: OSError, path: Path) -> StoreError:
    """Return the error for a write below ``path`` that the host refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        return DiskFullError(
            f"no space left for {path}: {format_size(free)} free",
            hint="free some space, or run 'harness images gc'",
        )
    return StoreError(f"{path} cannot be written: {error}")
