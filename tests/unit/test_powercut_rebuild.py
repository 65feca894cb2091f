from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import StateError, UnknownNameError, UsageError
from harness.powercut import Kind, Point, Rebuilder, Recording
from harness.qemu.disk import qemu_img
from harness.qemu.writelog import DISCARD, FLUSH, FUA
from tests.programs import need
from tests.unit.test_powercut_log import SECTOR, EntryTuple, write_log

SECTORS = 256


def record(folder: Path, entries: list[EntryTuple]) -> Recording:
    """Return a recording of a disk that is filled with the letter ``o``."""
    need("qemu-img")
    folder.mkdir()
    raw = folder / "raw"
    raw.write_bytes(b"o" * SECTOR * SECTORS)
    qemu_img("convert", "-O", "qcow2", str(raw), str(folder / "base.qcow2"))
    write_log(folder / "log", entries)
    recording = Recording(folder, "data", "data-1", {"begin": 0})
    recording.save()
    return Recording.read(folder)


def letters(path: Path, count: int = 8) -> str:
    data = path.read_bytes()
    assert len(data) == SECTOR * SECTORS
    return "".join(chr(data[at * SECTOR] or ord("0")) for at in range(count))


ENTRIES: list[EntryTuple] = [
    (0, 2, 0, b"a"),
    (0, 0, FLUSH, b""),
    (2, 2, 0, b"b"),
    (0, 1, FUA, b"c"),
    (4, 1, 0, b"d"),
    (2, 1, DISCARD, b""),
    (0, 0, FLUSH, b""),
    (7, 1, 0, b"e"),
]


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("w00000-clean", "oooooooo"),
        ("w00001-clean", "aaoooooo"),
        ("w00001-flushed", "oooooooo"),
        ("w00002-flushed", "aaoooooo"),
        ("w00003-clean", "aabboooo"),
        ("w00003-flushed", "aaoooooo"),
        ("w00004-flushed", "caoooooo"),
        ("w00006-flushed", "caoooooo"),
        ("w00006-clean", "ca0bdooo"),
        ("w00007-flushed", "ca0bdooo"),
        ("w00008-flushed", "ca0bdooo"),
        ("w00008-clean", "ca0bdooe"),
    ],
)
def test_a_disk_is_rebuilt_at_its_point(tmp_path: Path, point: str, expected: str) -> None:
    rebuilder = Rebuilder(record(tmp_path / "r", ENTRIES), tmp_path / "shared")
    path = rebuilder.build(Point.parse(point), tmp_path / "disk")
    assert letters(path) == expected
    assert rebuilder.seconds[point] > 0


def test_an_earlier_point_is_rebuilt_from_the_beginning(tmp_path: Path) -> None:
    with Rebuilder(record(tmp_path / "r", ENTRIES), tmp_path / "shared") as rebuilder:
        assert letters(rebuilder.build(Point(8, Kind.CLEAN), tmp_path / "disk")) == "ca0bdooe"
        assert letters(rebuilder.build(Point(1, Kind.CLEAN), tmp_path / "disk")) == "aaoooooo"
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_hole_in_the_log_overwrites_older_data_with_zeros(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", [(0, 128, 0, b"\0"), (0, 0, FLUSH, b"")])
    recording.pack()
    assert recording.path.stat().st_blocks * 512 < recording.path.stat().st_size
    path = Rebuilder(recording, tmp_path / "shared").build(Point(2, Kind.FLUSHED), tmp_path / "d")
    assert path.read_bytes() == bytes(128 * SECTOR) + b"o" * (SECTORS - 128) * SECTOR


def test_a_packed_recording_needs_no_other_file(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", ENTRIES)
    below = recording.base.rename(recording.folder / "below.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(recording.base))
    recording.pack()
    below.unlink()
    path = Rebuilder(recording, tmp_path / "shared").build(Point(8, Kind.CLEAN), tmp_path / "disk")
    assert letters(path) == "ca0bdooe"


def test_a_point_beyond_the_recording_is_refused(tmp_path: Path) -> None:
    rebuilder = Rebuilder(record(tmp_path / "r", ENTRIES), tmp_path / "shared")
    with pytest.raises(UsageError, match=r"no point w00009-clean: the recording has 8 entries"):
        rebuilder.build(Point(9, Kind.CLEAN), tmp_path / "disk")


def test_marks_are_saved_and_an_unknown_mark_is_an_error(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", ENTRIES)
    assert recording.mark("half") == 8
    assert Recording.read(tmp_path / "r").at("half") == 8
    with pytest.raises(UnknownNameError, match="unknown mark 'hal'"):
        recording.at("hal")


def test_an_incomplete_recording_is_refused(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", ENTRIES)
    recording.path.unlink()
    with pytest.raises(StateError, match="log is missing"):
        Recording.read(tmp_path / "r")
    with pytest.raises(StateError, match=r"recording\.json is missing"):
        Recording.read(tmp_path)
