"""skiff's build registers an emulator for another architecture; a folder stands for the kernel."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "images/skiff/binfmt"
MACHINES = {"x86_64": 62, "aarch64": 183}
"""``e_machine`` of elf(5)."""


def bash(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands with the kernel that ``folder`` stands for; nothing can be mounted."""
    script = f"""
    set -euo pipefail
    . {LIBRARY}
    binfmt={folder}
    mount() {{ return 1; }}
    {commands}
    """
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def elf(machine: int, kind: int = 2) -> bytes:
    """Return the first 20 bytes of a 64-bit little-endian ELF file of System V, elf(5)."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", kind, machine)


def unescaped(text: str) -> bytes:
    """Return the bytes that the kernel makes of a magic, fs/binfmt_misc.c, UNHEX."""
    return text.encode().decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize("arch", MACHINES)
def test_the_magic_matches_programs_of_the_architecture_alone(tmp_path: Path, arch: str) -> None:
    (tmp_path / "register").touch()
    process = bash(tmp_path, f"register_emulator {arch} /usr/bin/emulator build-1")
    assert process.returncode == 0, process.stderr
    line = (tmp_path / "register").read_text()
    _, name, kind, offset, magic, mask, interpreter, flags = line.split(":")
    assert (name, kind, offset, interpreter) == ("build-1", "M", "", "/usr/bin/emulator")
    assert "F" in flags
    magic_bytes, mask_bytes = unescaped(magic), unescaped(mask)
    assert len(magic_bytes) == len(mask_bytes) == 20
    assert len(line) < 256  # The kernel reads no more of it.

    def matches(header: bytes) -> bool:
        rows = zip(header, magic_bytes, mask_bytes, strict=True)
        return all((byte ^ wanted) & counts == 0 for byte, wanted, counts in rows)

    programs = {
        (other, kind): matches(elf(machine, kind))
        for other, machine in MACHINES.items()
        for kind in (2, 3)  # Programs at a fixed place, and at any.
    }
    assert {other for (other, _), hit in programs.items() if hit} == {arch}
    assert programs[arch, 2]
    assert programs[arch, 3]
    assert not matches(elf(MACHINES[arch], kind=1))


def test_the_entry_of_the_build_is_removed_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "register").touch()
    entry = tmp_path / "build-1"
    process = bash(
        tmp_path,
        f"register_emulator aarch64 /usr/bin/emulator build-1; echo enabled > {entry}; cat {entry}",
    )
    assert process.stdout == "enabled\n"
    assert entry.read_text() == "-1\n"


def test_what_a_killed_build_has_left_goes_before_the_next(tmp_path: Path) -> None:
    (tmp_path / "register").touch()
    (tmp_path / "build-1").write_text("enabled\n")
    process = bash(tmp_path, f"check_binfmt aarch64 build-1; cat {tmp_path}/build-1")
    assert process.stdout == "-1\n"
    # The kernel was asked for an entry, and for none that matches a program.
    line = (tmp_path / "register").read_text()
    assert unescaped(line.split(":")[4])[18:] == b"\xff\xff"


@pytest.mark.parametrize(("flags", "line"), [("POCF", ""), ("PO", ":build-1:")])
def test_a_host_that_runs_such_programs_in_any_root_needs_no_entry(
    tmp_path: Path, flags: str, line: str
) -> None:
    (tmp_path / "register").touch()
    (tmp_path / "qemu-aarch64").write_text(
        f"enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: {flags}\noffset 0\n"
        f"magic {elf(183).hex()}\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
    )
    process = bash(tmp_path, "register_emulator aarch64 /usr/bin/emulator build-1")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "register").read_text().startswith(line)
    assert bool((tmp_path / "register").read_text()) == bool(line)


def test_a_host_without_binfmt_misc_is_told_the_other_ways(tmp_path: Path) -> None:
    process = bash(tmp_path, "check_binfmt aarch64 build-1")
    assert process.returncode == 1
    assert "binfmt_misc cannot be mounted here, so programs of aarch64 cannot run" in process.stderr
    for way in ("qemu-user-binfmt", "host\n       of aarch64", "the url and sha256"):
        assert way in process.stderr


def test_a_kernel_that_takes_no_entry_is_told_the_other_ways(tmp_path: Path) -> None:
    (tmp_path / "register").mkdir()  # Nobody can write to it.
    process = bash(tmp_path, "check_binfmt aarch64 build-1")
    assert process.returncode == 1
    assert "binfmt_misc takes no new interpreter here" in process.stderr
