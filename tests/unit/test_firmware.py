from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import FirmwareMissingError
from harness.qemu import firmware
from harness.spec import FirmwareKind


def descriptor(folder: Path, name: str, *, features: list[str], arch: str = "x86_64") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    code, variables = folder / f"{name}.code", folder / f"{name}.vars"
    code.touch()
    variables.touch()
    content: dict[str, Any] = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
        },
        "targets": [
            {"architecture": arch, "machines": ["pc-q35-*" if arch == "x86_64" else "virt-*"]}
        ],
        "features": features,
    }
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_plain_uefi_skips_secure_boot_and_other_arches(tmp_path: Path) -> None:
    descriptor(tmp_path, "10-secure", features=["secure-boot", "enrolled-keys", "requires-smm"])
    descriptor(tmp_path, "20-arm", features=[], arch="aarch64")
    descriptor(tmp_path, "60-plain", features=[])
    plain = firmware.find("x86_64", FirmwareKind.UEFI, [tmp_path])
    assert plain is not None
    assert plain.descriptor.name == "60-plain.json"
    assert not plain.smm
    secure = firmware.find("x86_64", FirmwareKind.UEFI_SECURE, [tmp_path])
    assert secure is not None
    assert secure.descriptor.name == "10-secure.json"
    assert secure.smm


def test_a_user_s_descriptor_hides_the_system_s_of_the_same_name(tmp_path: Path) -> None:
    descriptor(tmp_path / "user", "60-plain", features=[])
    descriptor(tmp_path / "system", "60-plain", features=[])
    plain = firmware.find("x86_64", FirmwareKind.UEFI, [tmp_path / "user", tmp_path / "system"])
    assert plain is not None
    assert plain.descriptor.parent.name == "user"


def test_an_empty_descriptor_hides_the_system_s_of_the_same_name(tmp_path: Path) -> None:
    descriptor(tmp_path / "system", "60-plain", features=[], arch="aarch64")
    (tmp_path / "60-plain.json").touch()
    with pytest.raises(FirmwareMissingError, match="no uefi firmware for aarch64") as caught:
        firmware.find("aarch64", FirmwareKind.UEFI, [tmp_path, tmp_path / "system"])
    assert "package qemu-efi-aarch64" in caught.value.hint
    assert caught.value.evidence == (
        f"{tmp_path}/60-plain.json: empty: it hides the file of its name in other directories"
    )


def test_the_lowest_number_wins_across_directories(tmp_path: Path) -> None:
    descriptor(tmp_path / "user", "70-late", features=[])
    descriptor(tmp_path / "system", "50-early", features=[])
    plain = firmware.find("x86_64", FirmwareKind.UEFI, [tmp_path / "user", tmp_path / "system"])
    assert plain is not None
    assert plain.descriptor.name == "50-early.json"


def test_missing_firmware_names_the_package_and_each_refused_descriptor(tmp_path: Path) -> None:
    descriptor(tmp_path, "60-gone", features=[])
    (tmp_path / "60-gone.code").unlink()
    (tmp_path / "70-broken.json").write_text("{")
    with pytest.raises(FirmwareMissingError) as caught:
        firmware.find("x86_64", FirmwareKind.UEFI, [tmp_path])
    assert "package ovmf" in str(caught.value)
    assert "60-gone.code" in caught.value.evidence
    assert "70-broken.json: unreadable" in caught.value.evidence


def test_bios_is_built_in_on_x86_and_missing_on_arm(tmp_path: Path) -> None:
    assert firmware.find("x86_64", FirmwareKind.BIOS, [tmp_path]) is None
    assert firmware.find("aarch64", FirmwareKind.KERNEL, [tmp_path]) is None
    with pytest.raises(FirmwareMissingError, match="no BIOS for aarch64"):
        firmware.find("aarch64", FirmwareKind.BIOS, [tmp_path])


def test_a_user_without_a_home_has_no_descriptors_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor(tmp_path, "60-plain", features=[])

    def homeless(path: Path) -> Path:
        if path.parts[:1] == ("~",):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", homeless)
    folders = [Path("~/.config/qemu/firmware"), tmp_path]
    assert [path.name for path in firmware.descriptors(folders)] == ["60-plain.json"]
