"""Firmware, found from the descriptors that QEMU's packages install.

The search follows ``docs/interop/firmware.json`` of QEMU: JSON files in three directories, a file
in an earlier directory hides files of the same name in later ones, and among the rest the name's
order is the priority.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import FirmwareMissingError
from harness.spec import FirmwareKind

DIRECTORIES: Final = (
    Path("~/.config/qemu/firmware"),
    Path("/etc/qemu/firmware"),
    Path("/usr/share/qemu/firmware"),
)

PACKAGES: Final = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}

MACHINES: Final = {"x86_64": "pc-q35-10.0", "aarch64": "virt-10.0"}
"""A machine type to match descriptors' patterns against; these are globs such as pc-q35-*."""


@dataclass(frozen=True, slots=True)
class FlashFirmware:
    """UEFI firmware in two flash devices.

    Attributes:
        code: The read-only program.
        variables: The template that a machine's own variable store is copied from.
        format: Format of both files.
        smm: Whether it needs System Management Mode.
        descriptor: The file that names them.
    """

    code: Path
    variables: Path
    format: str
    smm: bool
    descriptor: Path


def find(
    arch: str, kind: FirmwareKind, directories: Sequence[Path] = DIRECTORIES
) -> FlashFirmware | None:
    """Return the first firmware of ``kind`` for ``arch``; ``None`` where QEMU's built-in one serves.

    BIOS on x86-64 is SeaBIOS, which QEMU loads by itself; a direct kernel boot needs none from here.

    Raises:
        FirmwareMissingError: if no descriptor fits; names the package.
    """
    if kind is FirmwareKind.KERNEL:
        return None
    if kind is FirmwareKind.BIOS:
        if arch == "x86_64":
            return None
        raise FirmwareMissingError(f"there is no BIOS for {arch}", hint="use firmware: uefi")
    looked: list[str] = []
    for path in descriptors(directories):
        try:
            fit = _parse(path, arch, kind)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            looked.append(f"{path}: unreadable: {error!r}")
            continue
        if isinstance(fit, FlashFirmware):
            return fit
        looked.append(f"{path}: {fit}")
    raise FirmwareMissingError(
        f"no {kind.value} firmware for {arch} in QEMU's descriptors",
        evidence="\n".join(looked) or "no descriptors in " + ", ".join(map(str, directories)),
        hint=f"install the package {PACKAGES[arch]} (Debian, Ubuntu), or run './run setup'",
    )


def descriptors(directories: Iterable[Path]) -> list[Path]:
    """Return the descriptors in order of priority."""
    by_name: dict[str, Path] = {}
    for directory in directories:
        expanded = directory.expanduser()
        if expanded.is_dir():
            for path in expanded.glob("*.json"):
                by_name.setdefault(path.name, path)
    return [by_name[name] for name in sorted(by_name)]


def _parse(path: Path, arch: str, kind: FirmwareKind) -> FlashFirmware | str:
    """Return the firmware, or why the descriptor does not fit."""
    told: dict[str, Any] = json.loads(path.read_text())
    if "uefi" not in told["interface-types"]:
        return "not UEFI"
    machine = MACHINES[arch]
    if not any(
        target["architecture"] == arch
        and any(fnmatch.fnmatch(machine, pattern) for pattern in target["machines"])
        for target in told["targets"]
    ):
        return f"not for {arch}"
    mapping = told["mapping"]
    if mapping["device"] != "flash" or mapping.get("mode", "split") != "split":
        return "not in split flash"
    features = set(told["features"])
    # The plain kind must run any boot loader: enrolled keys would refuse an unsigned one.
    secure = "secure-boot" in features and "enrolled-keys" in features
    if secure != (kind is FirmwareKind.UEFI_SECURE):
        return "enforces Secure Boot" if secure else "does not enforce Secure Boot"
    if kind is FirmwareKind.UEFI and "secure-boot" in features:
        return "built for Secure Boot; a plain one is preferred"
    if features & {"amd-sev-es", "amd-sev-snp", "intel-tdx"} and "amd-sev" not in features:
        return "for confidential guests"
    code = Path(mapping["executable"]["filename"])
    variables = Path(mapping["nvram-template"]["filename"])
    if missing := [str(file) for file in (code, variables) if not file.is_file()]:
        return f"names files that are absent: {', '.join(missing)}"
    return FlashFirmware(
        code, variables, mapping["executable"]["format"], "requires-smm" in features, path
    )
