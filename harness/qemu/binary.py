"""The QEMU program of an arch: where it is and whether it is new enough."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import QemuMissingError, QemuTooOldError, UnknownNameError
from harness.spec import ARCHES

OLDEST: Final = (8, 2)
"""QEMU 7.2 corrupts guests under TCG: Linux 6.12 panics in its slab allocator during boot."""

PACKAGES: Final = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


@dataclass(frozen=True, slots=True)
class Qemu:
    """An installed QEMU.

    Attributes:
        path: The program.
        version: As it prints it, such as ``10.0.2``.
    """

    path: Path
    version: str


@functools.cache
def find(arch: str) -> Qemu:
    """Return the QEMU that emulates ``arch``.

    Raises:
        UnknownNameError: if Harness knows no such arch.
        QemuMissingError: if it is not installed; names the package.
        QemuTooOldError: if it is older than 8.2.
    """
    if arch not in ARCHES:
        raise UnknownNameError("arch", arch, ARCHES)
    name = f"qemu-system-{arch}"
    found = shutil.which(name)
    if found is None:
        raise QemuMissingError(
            f"{name} is not installed",
            hint=f"install the package {PACKAGES[arch]} (Debian, Ubuntu), or run './run setup'",
        )
    return check(Path(found))


def check(path: Path) -> Qemu:
    """Return the QEMU at ``path`` if it is new enough.

    Raises:
        QemuMissingError: if it does not run or does not say a version.
        QemuTooOldError: if it is older than 8.2.
    """
    try:
        told = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuMissingError(f"{path} does not run: {error}", hint="reinstall QEMU") from error
    match = re.search(r"version (\d+)\.(\d+)(\.\d+)?", told.stdout)
    if match is None:
        raise QemuMissingError(
            f"{path} does not say its version", evidence=told.stdout + told.stderr
        )
    version = match[0].removeprefix("version ")
    if (int(match[1]), int(match[2])) < OLDEST:
        raise QemuTooOldError(
            f"{path} is version {version}; Harness needs {OLDEST[0]}.{OLDEST[1]} or newer",
            hint="on Debian 12 install it from bookworm-backports, or run './run setup'",
        )
    return Qemu(path, version)
