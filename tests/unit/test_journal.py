"""The journal of a machine that does not answer is read from its disk, whatever the disk holds."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.bundles import journal
from harness.errors import CommandError, PanicError
from harness.evidence.timeline import Timeline
from harness.qemu.argv import DiskFile
from harness.qemu.disk import qemu_img
from harness.result import Result
from harness.spec import MIB, Disk
from tests.programs import needs

pytestmark = [needs("debugfs"), needs("mkfs.ext4"), needs("sfdisk"), needs("qemu-img")]

ID = "0123456789abcdef0123456789abcdef"

JOURNALCTL = """#!/bin/sh
# Prints what it was asked for, and the files that it would read.
echo "asked: $*"
for word; do case $word in --directory=*) cat "${word#--directory=}"/*.journal;; esac; done
"""

Make = Callable[..., Any]


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of journalctl."""
    program = tmp_path / "bin/journalctl"
    program.parent.mkdir()
    program.write_text(JOURNALCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def file_system(folder: Path, image: Path, size: int = 8 * MIB) -> bytes:
    """Return an ext4 file system that holds a folder."""
    with image.open("wb") as file:
        file.truncate(size)
    program = journal._program("mkfs.ext4")
    subprocess.run([program, "-q", "-d", folder, image], check=True, capture_output=True)
    return image.read_bytes()


def disk_of(tmp_path: Path, tree: dict[str, str], place: str = "log/journal") -> Path:
    """Return a qcow2 overlay on a disk with two partitions, of which the second one has the tree."""
    folder = tmp_path / "tree"
    for name, text in {f"{place}/{ID}/system.journal": "the last words\n", **tree}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    raw = tmp_path / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(20 * MIB)
    table = "label: gpt\nstart=2048, size=8192, name=empty\nstart=10240, size=16384, name=state\n"
    subprocess.run(["sfdisk", "-q", raw], input=table, text=True, check=True)
    with raw.open("r+b") as file:
        file.seek(10240 * 512)
        file.write(file_system(folder, tmp_path / "part"))
    overlay = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", str(overlay))
    return overlay


@pytest.fixture
def machine(tmp_path: Path) -> Make:
    def make(disk: Path | None, **more: Any) -> Any:
        evidence = tmp_path / "leaf"
        evidence.mkdir()
        fields: dict[str, Any] = {
            "name": "leaf",
            "running": False,
            "failure": PanicError("leaf: Kernel panic"),
            "evidence": evidence,
            "timeline": Timeline(),
            "spec": SimpleNamespace(disks=(Disk("system", size=20 * MIB),)),
            "disk": lambda name: DiskFile(disk or Path("absent"), "qcow2"),
            "os": SimpleNamespace(
                selection=SimpleNamespace(capabilities=("systemd",)),
                as_root=lambda command: command,
            ),
        }
        return SimpleNamespace(**fields | more)

    return make


def words(machine: Any, name: str = journal.JOURNAL) -> str:
    return str((machine.evidence / name).read_text())


@pytest.mark.parametrize("place", ["log/journal", "var/log/journal"])
@pytest.mark.usefixtures("journalctl")
def test_the_journal_is_read_from_the_disk(tmp_path: Path, machine: Make, place: str) -> None:
    leaf = machine(disk_of(tmp_path, {f"{place}/{ID}/user-1000.journal": "a user\n"}, place))
    journal.collect([leaf])
    text = words(leaf)
    assert text.startswith("# from partition 'state' of disk system, as the machine did not answer")
    assert "the last words\n" in text
    assert "a user\n" in text
    assert "-b -q --no-pager -o short-monotonic -n 5000" in text
    assert "MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c" in words(leaf, journal.FAILED)
    # Nothing but these two files is left.
    assert {each.name for each in leaf.evidence.iterdir()} == {"journal.txt", "failed-units.txt"}
    assert [step.data for step in leaf.timeline.steps] == [{"from": "partition 'state' of system"}]


def test_without_journalctl_the_files_are_kept_with_the_line_that_reads_them(
    tmp_path: Path, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = machine(disk_of(tmp_path, {}))
    which = shutil.which
    monkeypatch.setattr(
        "harness.bundles.journal.shutil.which",
        lambda name, **at: None if name == "journalctl" else which(name, **at),
    )
    journal.collect([leaf])
    (file,) = (leaf.evidence / "journal").iterdir()
    assert file.read_text() == "the last words\n"
    head, line = words(leaf).splitlines()
    assert head.endswith("this host has no journalctl. To read it, here:")
    assert line.startswith("journalctl --directory=journal -b")


@pytest.mark.usefixtures("journalctl")
def test_hostile_names_and_sizes_reach_nothing_else(tmp_path: Path, machine: Make) -> None:
    above = f"log/journal/{ID}"
    tree = {
        f"{above}/x; dump system.journal.journal": "semicolon",
        f"{above}/-R quit.journal": "option",
        f"{above}/ääh.journal": "letters",
        f"{above}/log": "no journal",
        "log/journal/not-a-machine/system.journal": "another folder",
    }
    disk = disk_of(tmp_path, tree)
    leaf = machine(disk)
    before = set(tmp_path.rglob("*"))
    journal.collect([leaf])
    assert words(leaf).splitlines()[-1] == "the last words"
    assert [each for each in tree.values() if each in words(leaf)] == []
    new = set(tmp_path.rglob("*")) - before
    assert {path.name for path in new} == {"journal.txt", "failed-units.txt"}


@pytest.mark.usefixtures("journalctl")
def test_a_partition_outside_of_the_disk_is_passed_over(tmp_path: Path, machine: Make) -> None:
    disk = disk_of(tmp_path, {})
    with (tmp_path / "disk.raw").open("r+b") as file:
        # The third entry of the table, which lies behind the header: UEFI 2.10, table 5.6.
        for number, (first, last) in enumerate([(1 << 40, 1 << 41), (9, 3), (1 << 63, 1 << 63)], 2):
            file.seek(1024 + number * 128)
            file.write(b"\7" * 32 + struct.pack("<QQ", first, last))
    leaf = machine(disk)
    journal.collect([leaf])
    assert "the last words" in words(leaf)


@pytest.mark.parametrize("damage", [b"\0", b"\xff", b"\x7f\0"])
@pytest.mark.usefixtures("journalctl")
def test_a_damaged_file_system_is_said_to_be_one(
    tmp_path: Path, machine: Make, damage: bytes
) -> None:
    disk = disk_of(tmp_path, {})
    raw = tmp_path / "disk.raw"
    with raw.open("r+b") as file:
        file.seek(10240 * 512 + 2048)
        file.write((damage * MIB)[:MIB])
    leaf = machine(disk)
    journal.collect([leaf])
    assert "could not be read: no journal is on its disks" in words(leaf)
    assert {each.name for each in leaf.evidence.iterdir()} == {"journal.txt"}


def test_a_disk_that_is_not_there_is_said(machine: Make) -> None:
    leaf = machine(None)
    journal.collect([leaf])
    assert words(leaf).startswith("# could not be read: qemu-img")


def test_a_machine_that_answers_is_asked(machine: Make) -> None:
    asked = []

    def run(command: str, limit: object) -> Result:
        asked.append(command)
        return Result("foo.service loaded failed\n", "", 0, 0.1)

    leaf = machine(
        None,
        running=True,
        failure=None,
        use_console_shell=False,
        ssh=SimpleNamespace(run=run),
        qmp=SimpleNamespace(execute=lambda command, **more: {"status": "running"}),
    )
    journal.collect([leaf])
    assert [("journalctl -b" in each, "systemctl --failed" in each) for each in asked] == [
        (True, False),
        (False, True),
    ]
    assert words(leaf).startswith("# the machine's own answer")
    assert "foo.service" in words(leaf, journal.FAILED)


@pytest.mark.usefixtures("journalctl")
def test_the_disk_is_read_if_the_machine_does_not_answer_after_all(
    tmp_path: Path, machine: Make
) -> None:
    commands = []

    def refuse(command: str, limit: object) -> Result:
        raise CommandError("no")

    def execute(command: str, **more: object) -> dict[str, str]:
        commands.append(command)
        return {"status": "running"}

    leaf = machine(
        disk_of(tmp_path, {}),
        running=True,
        failure=None,
        use_console_shell=True,
        console=SimpleNamespace(run=refuse),
        qmp=SimpleNamespace(execute=execute),
    )
    journal.collect([leaf])
    assert "the last words" in words(leaf)
    # It stood still while its disk was read, and goes on.
    assert commands == ["query-status", "stop", "cont"]


def test_an_image_without_systemd_is_left_alone(machine: Make) -> None:
    leaf = machine(None)
    leaf.os.selection.capabilities = ("ssh",)
    journal.collect([leaf])
    assert list(leaf.evidence.iterdir()) == []
