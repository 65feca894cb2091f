"""The check of a file system after a power cut."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.errors import GuestError
from harness.powercut.ext4 import check_ext4
from harness.spec import MIB
from tests.unit.test_powercut_partitions import disk_with

PATH = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}

START, SIZE = 2 * MIB, 16 * MIB


def run(*command: str, script: str = "") -> None:
    subprocess.run(command, check=True, env=PATH, input=script, text=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with an ext4 file system whose journal has a transaction that is not replayed yet."""
    alone = tmp_path / "alone"
    run("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", str(alone), f"{SIZE // MIB}M")
    free = tmp_path / "block"
    free.write_bytes(b"x" * 4096)
    # debugfs(8) writes a transaction into the journal; the next mount replays it.
    run("debugfs", "-w", "-f", "-", str(alone), script=f"jo\njw -b 4000 {free}\njc\n")
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


def test_a_wrong_bitmap_is_damage(disk: Path) -> None:
    """A lost flush leaves such a bitmap; ``e2fsck -p`` would repair it silently."""
    alone = disk.parent / "alone"
    run("debugfs", "-w", "-R", "setb 3000", str(alone))
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(alone.read_bytes())
    with pytest.raises(GuestError, match="Block bitmap differences"):
        check_ext4(disk, "var")


def test_a_missing_file_system_is_damage(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(bytes(4096))
    with pytest.raises(GuestError, match="file system of var is damaged"):
        check_ext4(disk, "var")


def test_a_missing_partition_is_named(disk: Path) -> None:
    with pytest.raises(GuestError, match="no partition 'home'"):
        check_ext4(disk, "home")


def test_a_file_system_without_a_partition_table_is_checked(disk: Path) -> None:
    alone = disk.parent / "alone"
    check_ext4(alone)
    with alone.open("r+b") as file:
        file.seek(4096)  # the group descriptors
        file.write(b"\xff" * 2048)
    with pytest.raises(GuestError, match="file system of the disk is damaged"):
        check_ext4(alone)
