from __future__ import annotations

from pathlib import Path

import pytest

from harness.host import capacity as host

MIB = 1024 * 1024


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    return folder


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_a_limit_the_host_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    write(tmp_path / "cg", memory__max="max", cpu__max="max 100000")
    room = host.capacity(proc, tmp_path / "cg")
    assert (room.memory, room.available, room.limit) == (8192 * MIB, 4096 * MIB, "host")


def test_v2_uses_the_tightest_group_above(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/pod/box\n")
    root = tmp_path / "cg"
    write(root / "pod", memory__max=str(1024 * MIB), memory__current=str(1000 * MIB))
    write(root / "pod" / "box", memory__max="max", cpu__max="50000 100000")
    room = host.capacity(proc, root)
    assert room.memory == 1024 * MIB
    assert room.available == 24 * MIB
    assert room.limit == str(root / "pod" / "memory.max")
    assert room.cpus == 0.5


def test_v1_has_limits_and_a_number_for_none(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("4:memory:/a\n5:cpu,cpuacct:/a\n")
    root = tmp_path / "cg"
    write(root / "memory", memory__limit_in_bytes="9223372036854771712")
    write(root / "memory" / "a", memory__limit_in_bytes=str(512 * MIB))
    write(root / "cpu" / "a", cpu__cfs_quota_us="25000", cpu__cfs_period_us="100000")
    room = host.capacity(proc, root)
    assert room.memory == 512 * MIB
    assert room.cpus == 0.25


def test_a_path_on_the_host_falls_back_to_the_mount(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/kubepods/pod1/box\n")
    write(tmp_path / "cg", memory__max=str(256 * MIB))
    assert host.capacity(proc, tmp_path / "cg").memory == 256 * MIB


def test_this_host_has_cpus_and_memory() -> None:
    room = host.capacity()
    assert room.cpus > 0
    assert 0 < room.available <= room.memory
