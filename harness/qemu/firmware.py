"""Firmware, located by the descriptors that QEMU's packages install.

The search follows ``docs/interop/firmware.json`` of QEMU: JSON files in three directories. A file in
an earlier directory hides files of the same name in later ones, also if it is empty; the rest are
tried in the order of their names.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness import arch as arches
from harness.errors import FirmwareMissingError
from harness.spec import FirmwareKind

DIRECTORIES: Final = (
    Path("~/.config/qemu/firmware"),
    Path("/etc/qemu/firmware"),
    Path("/usr/share/qemu/firmware"),
)


@dataclass(frozen=True, slots=True)
class FlashFirmware:
    """UEFI firmware in two flash devices, one for the code and one for the variables.

    Attributes:
        code: The read-only firmware image.
        variables: The template from which each machine copies its variable store.
        format: The format of both files.
        smm: Whether the firmware needs System Management Mode.
        descriptor: The descriptor that names the two files.
    """

    code: Path
    variables: Path
    format: str
    smm: bool
    descriptor: Path


def find(
    arch: str, kind: FirmwareKind, directories: Sequence[Path] = DIRECTORIES
) -> FlashFirmware | None:
    """Return the first firmware of ``kind`` for ``arch``; ``None`` if QEMU needs none from here.

    QEMU loads SeaBIOS by itself on x86-64, and a direct kernel boot needs no firmware.

    Raises:
        UnknownNameError: Harness has no such arch.
        FirmwareMissingError: No descriptor matches; names the package.
    """
    row = arches.of(arch)
    if kind is FirmwareKind.KERNEL:
        return None
    if kind is FirmwareKind.BIOS:
        if row.has_bios:
            return None
        raise FirmwareMissingError(f"there is no BIOS for {arch}", hint="use firmware: uefi")
    refused: list[str] = []
    for path in descriptors(directories):
        try:
            firmware = _parse(path, row, kind)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            refused.append(f"{path}: unreadable: {error!r}")
            continue
        if isinstance(firmware, FlashFirmware):
            return firmware
        refused.append(f"{path}: {firmware}")
    raise FirmwareMissingError(
        f"no {kind.value} firmware for {arch} in QEMU's descriptors",
        evidence="\n".join(refused) or "no descriptors in " + ", ".join(map(str, directories)),
        hint=f"install the package {row.uefi_package} (Debian, Ubuntu), or run './run setup'",
    )


def descriptors(directories: Iterable[Path]) -> list[Path]:
    """Return the descriptors in order of priority."""
    by_name: dict[str, Path] = {}
    for directory in directories:
        try:
            expanded = directory.expanduser()
        except RuntimeError:
            continue  # a user without HOME and without a passwd entry has no "~"
        if expanded.is_dir():
            for path in expanded.glob("*.json"):
                by_name.setdefault(path.name, path)
    return [by_name[name] for name in sorted(by_name)]


def _parse(path: Path, row: arches.Arch, kind: FirmwareKind) -> FlashFirmware | str:
    """Return the firmware of a descriptor, or the reason why it does not match."""
    text = path.read_text()
    if not text:
        return "empty: it hides the file of its name in other directories"
    descriptor: dict[str, Any] = json.loads(text)
    if "uefi" not in descriptor["interface-types"]:
        return "not UEFI"
    if not any(
        target["architecture"] == row.name
        and any(fnmatch.fnmatch(row.machine, pattern) for pattern in target["machines"])
        for target in descriptor["targets"]
    ):
        return f"not for {row.name}"
    mapping = descriptor["mapping"]
    if mapping["device"] != "flash" or mapping.get("mode", "split") != "split":
        return "not in split flash"
    features = set(descriptor["features"])
    # Plain UEFI must run any boot loader; enrolled keys would refuse an unsigned one.
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
        return f"names missing files: {', '.join(missing)}"
    return FlashFirmware(
        code, variables, mapping["executable"]["format"], "requires-smm" in features, path
    )
