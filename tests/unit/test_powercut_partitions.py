from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.powercut.partitions import Partition, partition, partitions
from harness.spec import MIB


def disk_with(path: Path, label: str, start: int, size: int) -> Path:
    """Write a disk with one partition; only the fields that the reader uses are set."""
    head = struct.pack(
        "<8s IIII QQQQ 16s QIII",
        *(b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 0, bytes(16), 2, 128, 128, 0),
    )
    first = start // 512
    entry = b"t" * 16 + b"u" * 16 + struct.pack("<QQQ", first, first + size // 512 - 1, 0)
    with path.open("wb") as file:
        file.truncate(start + size + MIB)
        file.seek(512)
        file.write(head)
        file.seek(1024)
        file.write(entry + label.encode("utf-16-le").ljust(72, b"\0"))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return disk_with(tmp_path / "disk", "var", 2 * MIB, 16 * MIB)


def test_a_partition_is_found_by_its_label(disk: Path) -> None:
    assert partition(disk, "var") == Partition("var", 2 * MIB, 16 * MIB)
    assert partition(disk, "oem") is None


def test_a_disk_without_a_table_has_none(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    assert partitions(tmp_path / "disk") == []
    (tmp_path / "disk").write_bytes(b"")
    assert partitions(tmp_path / "disk") == []
