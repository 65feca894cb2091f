from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UnknownNameError, UsageError
from harness.spec import (
    GIB,
    MIB,
    Disk,
    Firmware,
    FirmwareKind,
    MachineSpec,
    Nic,
    format_size,
    parse_size,
)

BIOS = Firmware(FirmwareKind.BIOS)


def test_equal_specs_are_equal_and_hash_alike() -> None:
    one = MachineSpec("m", "x86_64", BIOS, disks=(Disk("a", size=MIB),))
    two = MachineSpec("m", "x86_64", BIOS, disks=(Disk("a", size=MIB),))
    assert one == two
    assert hash(one) == hash(two)


def test_mac_is_local_stable_and_differs_between_machines() -> None:
    one = MachineSpec("one", "x86_64", BIOS)
    two = MachineSpec("two", "x86_64", BIOS)
    nic = Nic()
    assert one.mac(nic) == one.mac(nic) != two.mac(nic)
    assert int(one.mac(nic).split(":")[0], 16) & 0b11 == 0b10
    assert one.mac(Nic(mac="52:54:00:00:00:01")) == "52:54:00:00:00:01"


def test_unknown_arch_lists_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="aarch64"):
        MachineSpec("m", "aarch", BIOS)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Disk("d"), "needs a size"),
        (lambda: Disk("d", size=1000), "multiple of 512"),
        (lambda: Disk("D", size=MIB), "disk name"),
        (lambda: Disk("d", size=MIB, serial="x" * 21), "at most 20"),
        (lambda: Disk("d", size=MIB, serial="a,b"), "serial"),
        (lambda: Disk("d", base=Path("x"), format="vhd"), "raw or qcow2"),
        (lambda: Disk("d", size=MIB, readonly=True), "writable"),
        (lambda: Firmware(FirmwareKind.KERNEL), "go together"),
        (lambda: Firmware(FirmwareKind.BIOS, kernel=Path("k")), "go together"),
        (lambda: MachineSpec("m", "x86_64", BIOS, cpus=0), "at least one CPU"),
        (lambda: MachineSpec("m", "x86_64", BIOS, memory=MIB), "memory"),
        (
            lambda: MachineSpec(
                "m", "x86_64", BIOS, disks=(Disk("d", size=MIB), Disk("d", size=MIB))
            ),
            "two disks named d",
        ),
        (
            lambda: MachineSpec(
                "m",
                "x86_64",
                BIOS,
                disks=(Disk("a", size=MIB, serial="s"), Disk("b", size=MIB, serial="s")),
            ),
            "two serials named s",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(make: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()  # type: ignore[operator]


def test_sizes() -> None:
    assert parse_size("4GiB") == 4 * GIB
    assert parse_size("512 MiB") == 512 * MIB
    assert parse_size("4096") == 4096
    assert format_size(3 * GIB // 2) == "1.5 GiB"
    for wrong in ("4GB", "", "-1", "1.5GiB", "GiB"):
        with pytest.raises(UsageError, match="a size is"):
            parse_size(wrong)
