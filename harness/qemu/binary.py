"""The QEMU program of an architecture: where it is and whether it is new enough."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import arch as arches
from harness.errors import QemuMissingError, QemuTooOldError

OLDEST: Final = (8, 2)
"""QEMU 7.2 corrupts guests under TCG: Linux 6.12 panics in its slab allocator during boot."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """An installed QEMU.

    Attributes:
        path: The program.
        version: The version that the program prints, such as ``10.0.2``.
    """

    path: Path
    version: str


@functools.cache
def find(arch: str) -> Qemu:
    """Return the QEMU that emulates ``arch``.

    Raises:
        UnknownNameError: Harness has no such arch.
        QemuMissingError: QEMU is not installed; names the package.
        QemuTooOldError: QEMU is older than 8.2.
    """
    row = arches.of(arch)
    path = shutil.which(row.qemu)
    if path is None:
        raise QemuMissingError(
            f"{row.qemu} is not installed",
            hint=f"install the package {row.qemu_package} (Debian, Ubuntu), or run './run setup'",
        )
    return check(Path(path))


def check(path: Path) -> Qemu:
    """Return the QEMU at ``path`` if it is new enough.

    Raises:
        QemuMissingError: The program does not run or does not print a version.
        QemuTooOldError: QEMU is older than 8.2.
    """
    try:
        ended = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuMissingError(f"{path} does not run: {error}", hint="reinstall QEMU") from error
    match = re.search(r"version (\d+)\.(\d+)(\.\d+)?", ended.stdout)
    if match is None:
        raise QemuMissingError(
            f"{path} does not print its version",
            evidence=ended.stdout + ended.stderr,
            hint="reinstall QEMU",
        )
    version = match[0].removeprefix("version ")
    if (int(match[1]), int(match[2])) < OLDEST:
        raise QemuTooOldError(
            f"{path} is version {version}; Harness needs {OLDEST[0]}.{OLDEST[1]} or newer",
            hint="on Debian 12 install it from bookworm-backports, or run './run setup'",
        )
    return Qemu(path, version)
