from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from harness.crash.filesystem import Partition, check_ext4, partition, partitions
from harness.errors import GuestError
from harness.spec import MIB

PATH = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}


def disk_with(path: Path, label: str, start: int, size: int) -> Path:
    """Write a disk with one partition; only what a reader of the table looks at."""
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
    path = disk_with(tmp_path / "disk", "var", 2 * MIB, 16 * MIB)
    options = ["-q", "-b", "4096", "-E", f"offset={2 * MIB}", str(path), "16M"]
    subprocess.run(["mkfs.ext4", *options], check=True, env=PATH)
    return path


def test_a_partition_is_found_by_its_label(disk: Path) -> None:
    assert partition(disk, "var") == Partition("var", 2 * MIB, 16 * MIB)
    assert partition(disk, "oem") is None


def test_a_disk_without_a_table_has_none(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    assert partitions(tmp_path / "disk") == []
    (tmp_path / "disk").write_bytes(b"")
    assert partitions(tmp_path / "disk") == []


def test_a_file_system_is_whole_or_damaged(disk: Path) -> None:
    where = partition(disk, "var")
    assert where is not None
    check_ext4(disk, where)
    with disk.open("r+b") as file:
        file.seek(where.start + 4096)  # the group's descriptors
        file.write(b"\xff" * 2048)
    with pytest.raises(GuestError, match="file system of var is damaged") as caught:
        check_ext4(disk, where)
    assert "e2fsck" in str(caught.value)
