"""Restoring a saved machine: the options of a fork, its differences from its siblings, the checks."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import StateError
from harness.qemu import argv
from harness.qemu.argv import Allocations, Ram
from harness.qemu.binary import Qemu
from harness.spec import MIB, Firmware, FirmwareKind, MachineSpec, Nic
from harness.states import restore
from harness.states.restore import allocate, differences, script
from harness.states.save import Memory
from harness.states.snapshot import Snapshot

SHELLS = [shell for shell in ("sh", "bash", "busybox sh") if shutil.which(shell.split()[0])]

SPEC = MachineSpec("one", "x86_64", Firmware(FirmwareKind.BIOS), memory=64 * MIB)
BOOTED = Allocations(Path("/qemu"), "pc-q35-10.0", "tcg", "max", qmp_fd=3, console_fds=(4, 5))
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
    commands = differences(SPEC, other, now=1000.6)
    nic = SPEC.nics[0]
    assert f"{SPEC.mac(nic)}) ip link set dev " in commands["MAC addresses"]
    assert f"address {other.mac(nic)}||" in commands["MAC addresses"]
    assert "date -u -s @1001" in commands["clock"]


def test_a_mac_address_that_stays_needs_no_command() -> None:
    assert "MAC addresses" not in differences(SPEC, SPEC)
    fixed = replace(SPEC, nics=(Nic(mac="52:54:00:00:00:01"),))
    assert "MAC addresses" not in differences(fixed, replace(fixed, name="two"))


def test_the_random_pool_is_reseeded_first_and_the_clock_is_set_last() -> None:
    other = replace(SPEC, name="two")
    assert list(differences(SPEC, other, reseed="x")) == ["random pool", "MAC addresses", "clock"]
    assert "random pool" not in differences(SPEC, other)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_what_failed_and_goes_on(shell: str) -> None:
    commands = {"pool": "false", "addresses": "b=; [ $b ]", "clock": "echo set"}
    command = [*shell.split(), "-c", script(commands)]
    assert subprocess.check_output(command, text=True) == "pool\naddresses\nset\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("refused", [False, True])
def test_a_refused_mac_address_is_named(tmp_path: Path, shell: str, refused: bool) -> None:
    """The shell sees interfaces of the test's own, and an ``ip`` that refuses to change one of two."""
    before = replace(SPEC, nics=(Nic("a", forward=()), Nic("b", forward=())))
    after = replace(before, name="two")
    for nic in before.nics:
        (tmp_path / nic.name).mkdir()
        (tmp_path / nic.name / "address").write_text(f"{before.mac(nic)}\n")
    command = differences(before, after)["MAC addresses"].replace("/sys/class/net", str(tmp_path))
    fake = f"ip() {{ echo $*; [ $4 != {'a' if refused else 'c'} ]; }};"
    process = subprocess.run(
        [*shell.split(), "-c", fake + script({"MAC addresses": command})],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    changes = [f"link set dev {nic.name} address {after.mac(nic)}" for nic in after.nics]
    assert process.stdout.splitlines() == [*changes, *(["MAC addresses"] if refused else [])]


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
