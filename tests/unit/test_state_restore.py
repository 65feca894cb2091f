from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import StateError
from harness.qemu import argv
from harness.qemu.argv import Allocations, Ram
from harness.qemu.binary import Qemu
from harness.spec import MIB, Firmware, FirmwareKind, MachineSpec, Nic
from harness.state import restore
from harness.state.restore import allocate, difference
from harness.state.save import Memory
from harness.state.snapshot import Snapshot

SPEC = MachineSpec("one", "x86_64", Firmware(FirmwareKind.BIOS), memory=64 * MIB)
GIVEN = Allocations(Path("/qemu"), "tcg", "max", qmp_fd=3, console_fd=4)
SAVED = Snapshot(Path("/saved"), SPEC, "tcg", "max", "10.0.2", 1.0)


def text(given: Allocations, spec: MachineSpec = SPEC) -> str:
    return " ".join(argv.build(spec, given))


def test_ordinary_machines_are_as_before() -> None:
    assert "memory-backend" not in text(GIVEN)
    assert "vmgenid" not in text(GIVEN)
    assert "-incoming" not in text(GIVEN)


def test_a_fork_maps_the_saved_ram_privately_and_read_only() -> None:
    told = text(allocate(GIVEN, SAVED, None))
    assert "mem-path=/saved/ram,share=off,readonly=on,rom=off" in told
    assert "memory-backend=ram" in told
    assert "-incoming defer" in told
    assert "vmgenid,guid=auto" in told


def test_a_fork_that_is_saved_again_has_ram_of_its_own() -> None:
    own = replace(GIVEN, ram=Ram(Path("/proc/self/fd/7"), private=False))
    told = text(allocate(own, SAVED, Memory(7, 64 * MIB)))
    assert "mem-path=/proc/self/fd/7,share=on" in told
    assert "-incoming defer" in told


def test_a_cold_one_boots() -> None:
    assert allocate(GIVEN, replace(SAVED, cold="a device"), None) == GIVEN


def test_by_hand_there_is_no_descriptor() -> None:
    own = replace(GIVEN, ram=Ram(Path("/proc/self/fd/7"), private=False))
    assert "fd/7" not in text(argv.by_hand(own, Path("/d")))
    assert "/saved/ram" in text(argv.by_hand(allocate(GIVEN, SAVED, None), Path("/d")))


def test_arm_has_no_generation_device() -> None:
    spec = replace(SPEC, arch="aarch64", firmware=Firmware(FirmwareKind.UEFI))
    assert "vmgenid" not in text(allocate(GIVEN, SAVED, None), spec)


def test_a_fork_of_another_name_gets_its_own_address() -> None:
    other = replace(SPEC, name="two")
    told = difference(SPEC, other, now=1000.6)
    nic = SPEC.nics[0]
    assert f"{SPEC.mac(nic)}) ip link set dev " in told
    assert f"address {other.mac(nic)};;" in told
    assert "date -u -s @1001" in told


def test_an_address_that_stays_costs_no_command() -> None:
    assert "ip link" not in difference(SPEC, SPEC)
    fixed = replace(SPEC, nics=(Nic(mac="52:54:00:00:00:01"),))
    assert "ip link" not in difference(fixed, replace(fixed, name="two"))


@pytest.mark.parametrize(
    ("qemu", "accel", "model", "says"),
    [
        ("10.0.2", "tcg", "max", ""),
        ("9.2.0", "tcg", "max", "saved by QEMU 10.0.2, and this is 9.2.0"),
        ("10.0.2", "kvm", "max", "under tcg"),
        ("10.0.2", "tcg", "qemu64", "with the CPU max"),
    ],
)
def test_what_another_qemu_or_cpu_saved_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    qemu: str,
    accel: str,
    model: str,
    says: str,
) -> None:
    monkeypatch.setattr("harness.qemu.binary.find", lambda arch: Qemu(Path("/usr/bin/qemu"), qemu))
    for name in ("ram", "devices"):
        (tmp_path / name).write_bytes(b"x")
    origin = Snapshot(tmp_path, SPEC, "tcg", "max", "10.0.2", 0.0).write()
    if not says:
        restore.check(origin, accel, model)
        return
    with pytest.raises(StateError, match=says):
        restore.check(origin, accel, model)
