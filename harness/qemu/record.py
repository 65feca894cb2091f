"""``machine.json``: the record of a machine, from which ``qemu.sh`` is rendered.

It holds the spec and the allocations, and with them everything that QEMU was started with, credentials
included. Only its owner may read the file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

from harness import jsonfile
from harness.errors import HostError, UsageError
from harness.qemu import argv, binary
from harness.qemu.argv import Allocations
from harness.qemu.firmware import FlashFirmware
from harness.spec import MachineSpec

if TYPE_CHECKING:
    from pydantic import ConfigDict

FORMAT: Final = 2
"""The version of the file's format; it changes whenever an older Harness could not read the file."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The programs that a machine was started with.

    Attributes:
        harness: The version of Harness; empty if it is not installed as a package.
        qemu: The version of QEMU; empty if it is not the one that Harness finds.
        firmware: The SHA-256 of the UEFI firmware's code, in hexadecimal; empty without UEFI.
    """

    harness: str
    qemu: str
    firmware: str


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine as it was started.

    Attributes:
        format: :data:`FORMAT`.
        time: The time of the start, in UTC, as in ISO 8601.
        versions: The programs.
        provenance: The image, its version and its digests, as the caller passed them; plain JSON.
        spec: The spec; paths of disks' bases are absolute, with symbolic links resolved.
        allocations: The resources of the host. Descriptors were valid only for the process that
            started QEMU.
        disks: The folder of the machine's disks, UEFI variables and TPM state.
        argv: QEMU's command line in the run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    format: Literal[2]
    time: str
    versions: Versions
    provenance: dict[str, Any]
    spec: MachineSpec
    allocations: Allocations
    disks: Path
    argv: tuple[str, ...]

    @classmethod
    def of(
        cls,
        spec: MachineSpec,
        allocations: Allocations,
        *,
        folder: Path,
        provenance: Mapping[str, object],
    ) -> Self:
        """Return the record of a machine that is about to start.

        Args:
            spec: The machine.
            allocations: The resources that it uses.
            folder: The folder of its disks.
            provenance: The image, its version and its digests; values that JSON lacks become text.
        """
        bases = (
            disk if disk.base is None else replace(disk, base=disk.base.resolve())
            for disk in spec.disks
        )
        return cls(
            format=FORMAT,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=Versions(
                _harness_version(),
                _qemu_version(spec.arch, allocations.qemu),
                "" if allocations.firmware is None else _firmware_digest(allocations.firmware),
            ),
            provenance=json.loads(json.dumps(dict(provenance), default=str)),
            spec=replace(spec, disks=tuple(bases)),
            allocations=allocations,
            disks=folder,
            argv=argv.build(spec, allocations),
        )

    @classmethod
    def read(cls, path: Path) -> MachineRecord:
        """Return the record in a file.

        Raises:
            UsageError: The file cannot be read, or is not a record in this version's format.
        """
        try:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and content.get("format") != FORMAT:
                raise UsageError(
                    f"{path} has format {content.get('format')!r}, and this Harness reads {FORMAT}",
                    hint="use the version of Harness that the file names under 'versions'",
                )
            return jsonfile.parse(cls, content)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} is not the record of a machine",
                evidence=str(error),
                hint="use machine.json from the evidence of a run",
            ) from error

    def write(self, path: Path) -> None:
        """Write the record; only its owner may read the file, since it holds credentials.

        Raises:
            OSError: The file cannot be written.
        """
        jsonfile.write(path, jsonfile.dump(self), mode=0o600)


@functools.cache
def _harness_version() -> str:
    try:
        return importlib.metadata.version("harness-os")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _qemu_version(arch: str, path: Path) -> str:
    try:
        qemu = binary.find(arch)
    except HostError:
        return ""
    return qemu.version if qemu.path == path else ""


def _firmware_digest(firmware: FlashFirmware) -> str:
    try:
        state = firmware.code.stat()
        return _digest(firmware.code, state.st_mtime_ns, state.st_size)
    except OSError:
        return ""


@functools.cache
def _digest(path: Path, _mtime: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
