"""The QEMU program of an architecture: where it is, whether it is new enough, and its machine type."""

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
        machine: The machine type of its guests: the newest version that it has of the type in
            :attr:`harness.arch.Arch.machine`, and not newer than that. A machine that was saved goes on
            only with its own (docs/devel/migration/compatibility.rst of QEMU), and "q35" or "virt"
            means another one with each release.
    """

    path: Path
    version: str
    machine: str


@functools.cache
def find(arch: str) -> Qemu:
    """Return the QEMU that emulates ``arch``.

    Raises:
        UnknownNameError: Harness has no such arch.
        QemuMissingError: QEMU is not installed, or lacks the machine; names the package.
        QemuTooOldError: QEMU is older than 8.2.
    """
    row = arches.of(arch)
    path = shutil.which(row.qemu)
    if path is None:
        raise QemuMissingError(
            f"{row.qemu} is not installed",
            hint=f"install the package {row.qemu_package} (Debian, Ubuntu), or run './run setup'",
        )
    return check(Path(path), row)


def check(path: Path, row: arches.Arch) -> Qemu:
    """Return the QEMU at ``path`` if it is new enough.

    Args:
        path: The program.
        row: The architecture that it emulates.

    Raises:
        QemuMissingError: The program does not run, does not print a version, or lacks the machine.
        QemuTooOldError: QEMU is older than 8.2.
    """
    ended = _ask(path, "--version")
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
    return Qemu(path, version, _machine(path, row))


def _machine(path: Path, row: arches.Arch) -> str:
    """Return the machine type that guests get."""
    kind, _, newest = row.machine.rpartition("-")
    ended = _ask(path, "-machine", "help")
    versions = re.findall(rf"^{re.escape(kind)}-(\d+(?:\.\d+)+)\s", ended.stdout, re.MULTILINE)
    usable = [version for version in versions if _number(version) <= _number(newest)]
    if usable:
        return f"{kind}-{max(usable, key=_number)}"
    # QEMU drops versions after six years (docs/about/deprecated.rst), and some distributions have
    # names of their own, such as pc-q35-rhel9.4.0: take what the type without a version stands for.
    alias = re.search(rf"\(alias of ({re.escape(kind)}-\S+)\)", ended.stdout)
    if alias is None:
        raise QemuMissingError(
            f"{path} has no machine type {kind}",
            evidence=ended.stdout + ended.stderr,
            hint=f"install the package {row.qemu_package} (Debian, Ubuntu)",
        )
    return alias[1]


@functools.cache
def machine_types(qemu: Qemu) -> frozenset[str]:
    """Return the names of all machine types that a QEMU has."""
    output = _ask(qemu.path, "-machine", "help").stdout
    return frozenset(line.split()[0] for line in output.splitlines()[1:] if line.strip())


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _ask(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuMissingError(f"{path} does not run: {error}", hint="reinstall QEMU") from error
