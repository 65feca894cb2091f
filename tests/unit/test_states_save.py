"""Saving the disks of a machine, by qemu-img."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from harness.deadline import Scale
from harness.qemu import disk
from harness.qemu.argv import DiskFile
from harness.spec import MIB
from harness.states import save, stream
from tests.clocks import Loaded
from tests.programs import needs

pytestmark = needs("qemu-img")

MARKS = {"base": 0, "middle": 1, "top": 2}
"""The MiB at whose start the file has its own first letter."""


@pytest.fixture
def chain(tmp_path: Path) -> dict[str, Path]:
    """Return a disk of 64 MiB: an overlay on an overlay on a raw file, each in a folder of its own."""
    files: dict[str, Path] = {}
    below: list[str] = []
    for name in MARKS:
        content = tmp_path / "content"
        with content.open("wb") as file:
            file.truncate(64 * MIB)
            for other in (*files, name):
                file.seek(MARKS[other] * MIB)
                file.write(other[0].encode())
        kind = "qcow2" if below else "raw"
        files[name] = tmp_path / name / f"disk.{kind}"
        files[name].parent.mkdir()
        arguments = ["-f", "raw", "-O", kind, *below, str(content), str(files[name])]
        disk.qemu_img("convert", *arguments)
        below = ["-B", str(files[name]), "-F", kind]
    return files


def content(file: Path) -> bytes:
    """Return what a guest reads at the marks."""
    flat = file.with_suffix(".flat")
    disk.qemu_img("convert", "-f", "qcow2", "-O", "raw", str(file), str(flat))
    data = flat.read_bytes()
    return bytes(data[place * MIB] for place in MARKS.values())


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize(
    ("inside", "kept"),
    [("elsewhere", []), ("base", ["base"]), ("", ["middle", "base"])],
)
def test_bases_below_a_folder_stay_and_others_become_part(
    tmp_path: Path, chain: dict[str, Path], inside: str, kept: list[str], move: bool
) -> None:
    target = tmp_path / "target.qcow2"
    bases = save._save_disk(DiskFile(chain["top"], "qcow2"), target, tmp_path / inside, move)
    assert bases == [chain[name] for name in kept]
    information = json.loads(disk.qemu_img("info", "--output=json", str(target)))
    assert information.get("backing-filename") == (str(bases[0]) if bases else None)
    assert content(target) == b"bmt"
    # Holes stay holes.
    assert target.stat().st_blocks * 512 < 4 * MIB


def test_the_wait_for_the_stream_of_qemu_has_the_stretched_time() -> None:
    limit = Scale(clock=Loaded()).after(1.0)
    ours, qemu = socket.socketpair()
    with ours, qemu:
        late = threading.Timer(2.0, qemu.send, [b"state"])
        late.start()
        assert stream._ready([ours.fileno()], limit) == [ours.fileno()]
        late.join()


def test_the_wait_for_the_stream_of_qemu_ends() -> None:
    ours, qemu = socket.socketpair()
    with ours, qemu:
        assert stream._ready([ours.fileno()], Scale(clock=Loaded()).after(0.1)) == []
