"""The command that reseeds Linux' random pool, as far as a host can run it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from harness import arch as arches
from harness.profiles import _reseed

NEEDED = [name for name in arches.ARCHES if not arches.of(name).has_vmgenid]


def run(shell: str, arch: str, folders: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with other folders; the pool is a file in the first of them."""
    pool = f"{folders.split(maxsplit=1)[0]}/pool"
    command = _reseed.command(arch, "5eed")
    assert command.count("/dev/urandom") == 2
    command = command.replace("/dev/urandom", pool).replace("/run /dev/shm /tmp", folders)
    return subprocess.run([*shell.split(), "-c", command], capture_output=True, check=False)


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox sh"])
@pytest.mark.parametrize("arch", NEEDED)
def test_a_shell_writes_the_program(tmp_path: Path, shell: str, arch: str) -> None:
    if not shutil.which(shell.split(maxsplit=1)[0]):
        pytest.skip(f"no {shell.split(maxsplit=1)[0]} here: install the package of that name")
    run(shell, arch, str(tmp_path))
    file = tmp_path / ".harness-reseed"
    assert file.read_bytes() == _reseed.program(arch)
    assert file.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "pool").read_text() == "5eed\n"


@pytest.mark.parametrize("works", [True, False])
def test_the_next_folder_is_tried_and_a_failure_is_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    script = f"#!/bin/sh\nread -r seed; echo $seed $0; exit {int(not works)}\n".encode()
    monkeypatch.setattr(_reseed, "program", lambda arch: script)
    good = tmp_path / "good"
    good.mkdir()
    process = run("sh", "aarch64", f"{good} {tmp_path / 'missing'} {good}")
    assert (process.returncode == 0) == works
    assert process.stdout.decode().split() == ["5eed", str(good / ".harness-reseed")] * (2 - works)


@pytest.mark.parametrize("arch", NEEDED)
def test_the_program_is_an_elf_file_of_its_architecture(arch: str) -> None:
    """elf(5); Linux checks these fields in load_elf_binary (fs/binfmt_elf.c)."""
    data = _reseed.program(arch)
    assert data[:7] == b"\x7fELF\2\1\1"
    kind, machine, _, entry, offset = struct.unpack_from("<HHIQQ", data, 16)
    assert kind == 2
    assert {machine} == arches.of(arch).marks.elf
    size, number = struct.unpack_from("<HH", data, 54)
    assert (size, number) == (56, 1)
    load, flags, start, address, _, in_file, in_memory = struct.unpack_from(
        "<IIQQQQQ", data, offset
    )
    assert (load, flags, start, in_file, in_memory) == (1, 5, 0, len(data), len(data))
    assert data[entry - address :] == arches.of(arch).reseed_code


def test_no_command_is_needed_where_a_device_tells_the_kernel() -> None:
    for arch in arches.ARCHES:
        assert bool(_reseed.command(arch, "5eed")) == (arch in NEEDED)
