"""The check of a file system that power was taken from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.crash.ext4 import check_ext4
from harness.errors import GuestError
from harness.spec import MIB
from tests.unit.test_crash_partitions import disk_with

PATH = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}

START, SIZE = 2 * MIB, 16 * MIB


def run(*command: str, given: str = "") -> None:
    subprocess.run(command, check=True, env=PATH, input=given, text=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with an ext4 file system whose journal holds what is not in its place yet."""
    alone = tmp_path / "alone"
    run("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", str(alone), f"{SIZE // MIB}M")
    free = tmp_path / "block"
    free.write_bytes(b"x" * 4096)
    # debugfs(8) writes a transaction into the journal and leaves its replay to the next mount.
    run("debugfs", "-w", "-f", "-", str(alone), given=f"jo\njw -b 4000 {free}\njc\n")
    path = disk_with(tmp_path / "disk", "var", START, SIZE)
    with path.open("r+b") as file:
        file.seek(START)
        file.write(alone.read_bytes())
    return path


def test_a_journal_is_replayed_on_a_copy(disk: Path) -> None:
    before = disk.read_bytes()
    check_ext4(disk, "var")
    assert disk.read_bytes() == before
    assert sorted(path.name for path in disk.parent.iterdir()) == ["alone", "block", "disk"]


def test_a_bitmap_that_is_wrong_is_a_fault(disk: Path) -> None:
    """As after a flush that was lost; ``e2fsck -p`` would mend it in silence."""
    alone = disk.parent / "alone"
    run("debugfs", "-w", "-R", "setb 3000", str(alone))
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(alone.read_bytes())
    with pytest.raises(GuestError, match="Block bitmap differences"):
        check_ext4(disk, "var")


def test_a_file_system_that_is_gone(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(bytes(4096))
    with pytest.raises(GuestError, match="file system of var is damaged"):
        check_ext4(disk, "var")


def test_a_disk_without_the_partition(disk: Path) -> None:
    with pytest.raises(GuestError, match="no partition 'home'"):
        check_ext4(disk, "home")


def test_a_disk_without_a_partition_table(disk: Path) -> None:
    alone = disk.parent / "alone"
    check_ext4(alone)
    with alone.open("r+b") as file:
        file.seek(4096)  # the group's descriptors
        file.write(b"\xff" * 2048)
    with pytest.raises(GuestError, match="file system of the disk is damaged"):
        check_ext4(alone)
