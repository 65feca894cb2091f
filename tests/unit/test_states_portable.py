"""What can resume where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import BundleError
from harness.spec import Firmware, FirmwareKind, MachineSpec
from harness.states.portable import Place, check, refusal
from harness.states.snapshot import Snapshot

TYPES = {"pc-q35-10.0", "pc-q35-9.2", "q35"}

SAVED = Snapshot(
    folder=Path("/saved"),
    spec=MachineSpec("leaf", "x86_64", Firmware(FirmwareKind.UEFI)),
    machine="pc-q35-10.0",
    accel="tcg",
    cpu_model="max,-erms",
    qemu="10.0.2",
    saved=0.0,
)
TCG = Place("10.0.2", "tcg", "AuthenticAMD")
KVM = Place("10.0.2", "kvm", "AuthenticAMD")
ON_KVM = replace(SAVED, accel="kvm", cpu_model="Haswell-noTSX")


@pytest.mark.parametrize("qemu", ["10.0.2", "10.0.3", "10.1.0", "11.0.0"])
def test_tcg_resumes_under_the_same_or_a_newer_qemu(qemu: str) -> None:
    here = Place(qemu, "tcg", "GenuineIntel")
    assert refusal(SAVED, TCG, here, TYPES) == ""


@pytest.mark.parametrize("qemu", ["10.0.1", "9.2.4", "8.2.0"])
def test_an_older_qemu_is_refused(qemu: str) -> None:
    here = Place(qemu, "tcg", "AuthenticAMD")
    assert "the older" in refusal(SAVED, TCG, here, TYPES)


def test_another_accelerator_is_refused() -> None:
    assert "ran under tcg" in refusal(SAVED, TCG, KVM, TYPES)
    assert "ran under kvm" in refusal(ON_KVM, KVM, TCG, TYPES)


def test_kvm_wants_the_same_vendor_and_a_named_model() -> None:
    assert refusal(ON_KVM, KVM, KVM, TYPES) == ""
    other = replace(KVM, cpu_vendor="GenuineIntel")
    assert "GenuineIntel" in refusal(ON_KVM, KVM, other, TYPES)
    for model in ("host", "max", "host,-x2apic"):
        saved = replace(ON_KVM, cpu_model=model)
        assert "that of the host where it was saved" in refusal(saved, KVM, KVM, TYPES)


def test_a_machine_type_that_is_gone_is_refused() -> None:
    saved = replace(SAVED, machine="pc-q35-8.2")
    assert "no machine type pc-q35-8.2" in refusal(saved, TCG, TCG, TYPES)


def test_a_machine_without_ram_boots_anywhere() -> None:
    saved = replace(SAVED, cold="QEMU had ended", qemu="99.0", accel="kvm", cpu_model="host")
    assert refusal(saved, KVM, TCG, TYPES) == ""


@pytest.mark.parametrize(
    "change", [{"machine": "q35,kernel=/etc/passwd"}, {"cpu_model": "max -S"}, {"machine": ""}]
)
@pytest.mark.parametrize("cold", ["", "off"])
def test_names_carry_no_options_of_qemu(change: dict[str, str], cold: str) -> None:
    saved = replace(SAVED, cold=cold, **change)  # type: ignore[arg-type]
    assert "is no name" in refusal(saved, TCG, TCG, TYPES)


def test_the_error_names_the_machine() -> None:
    with pytest.raises(BundleError, match="machine leaf cannot be resumed here: it ran under tcg"):
        check(SAVED, TCG, KVM, TYPES)
