"""Restoring a saved machine: the options of a fork, its differences from its siblings, the checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import StateError
from harness.qemu import argv
from harness.qemu.argv import Allocations, Ram
from harness.qemu.binary import Qemu
from harness.spec import MIB, Firmware, FirmwareKind, MachineSpec, Nic
from harness.states import restore
from harness.states.restore import allocate, difference
from harness.states.save import Memory
from harness.states.snapshot import Snapshot

SPEC = MachineSpec("one", "x86_64", Firmware(FirmwareKind.BIOS), memory=64 * MIB)
BOOTED = Allocations(Path("/qemu"), "pc-q35-10.0", "tcg", "max", qmp_fd=3, console_fd=4)
SAVED = Snapshot(Path("/saved"), SPEC, "pc-q35-9.2", "tcg", "max", "10.0.2", 1.0)


def options(allocations: Allocations, spec: MachineSpec = SPEC) -> str:
    return " ".join(argv.build(spec, allocations))


def test_a_machine_that_boots_has_no_options_of_forks() -> None:
    assert "memory-backend" not in options(BOOTED)
    assert "vmgenid" not in options(BOOTED)
    assert "-incoming" not in options(BOOTED)


def test_a_fork_maps_the_saved_ram_privately_and_read_only() -> None:
    line = options(allocate(BOOTED, SAVED, None))
    assert "mem-path=/saved/ram,share=off,readonly=on,rom=off" in line
    assert "memory-backend=ram" in line
    assert "-incoming defer" in line
    assert "vmgenid,guid=auto" in line
    assert "-machine pc-q35-9.2," in line


def test_a_saveable_fork_has_ram_of_its_own() -> None:
    own = replace(BOOTED, ram=Ram(Path("/proc/self/fd/7"), private=False))
    line = options(allocate(own, SAVED, Memory(7, 64 * MIB)))
    assert "mem-path=/proc/self/fd/7,share=on" in line
    assert "-incoming defer" in line


def test_a_fork_of_a_cold_snapshot_boots() -> None:
    assert allocate(BOOTED, replace(SAVED, cold="a device"), None) == BOOTED


def test_a_command_for_a_person_names_no_descriptor() -> None:
    own = replace(BOOTED, ram=Ram(Path("/proc/self/fd/7"), private=False))
    assert "fd/7" not in options(argv.by_hand(own, Path("/d")))
    assert "/saved/ram" in options(argv.by_hand(allocate(BOOTED, SAVED, None), Path("/d")))


def test_a_fork_on_arm_has_no_generation_device() -> None:
    spec = replace(SPEC, arch="aarch64", firmware=Firmware(FirmwareKind.UEFI))
    assert "vmgenid" not in options(allocate(BOOTED, SAVED, None), spec)


def test_a_fork_of_another_name_has_its_own_mac_address() -> None:
    other = replace(SPEC, name="two")
    line = difference(SPEC, other, now=1000.6)
    nic = SPEC.nics[0]
    assert f"{SPEC.mac(nic)}) ip link set dev " in line
    assert f"address {other.mac(nic)};;" in line
    assert "date -u -s @1001" in line


def test_a_mac_address_that_stays_needs_no_command() -> None:
    assert "ip link" not in difference(SPEC, SPEC)
    fixed = replace(SPEC, nics=(Nic(mac="52:54:00:00:00:01"),))
    assert "ip link" not in difference(fixed, replace(fixed, name="two"))


@pytest.mark.parametrize(
    ("qemu", "accel", "model", "message"),
    [
        ("10.0.2", "tcg", "max", ""),
        ("9.2.0", "tcg", "max", "saved by QEMU 10.0.2, and this is 9.2.0"),
        ("10.0.2", "kvm", "max", "under tcg"),
        ("10.0.2", "tcg", "qemu64", "with the CPU max"),
    ],
)
def test_a_snapshot_of_another_qemu_or_cpu_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    qemu: str,
    accel: str,
    model: str,
    message: str,
) -> None:
    installed = Qemu(Path("/usr/bin/qemu"), qemu, "pc-q35-10.0")
    monkeypatch.setattr("harness.qemu.binary.find", lambda arch: installed)
    for name in ("ram", "devices"):
        (tmp_path / name).write_bytes(b"x")
    origin = Snapshot(tmp_path, SPEC, "pc-q35-10.0", "tcg", "max", "10.0.2", 0.0).write()
    if not message:
        restore.check(origin, accel, model)
        return
    with pytest.raises(StateError, match=message):
        restore.check(origin, accel, model)
