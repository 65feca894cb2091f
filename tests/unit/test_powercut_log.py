from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.errors import StateError
from harness.qemu import writelog as logs
from harness.qemu.writelog import DISCARD, FLUSH, FUA, MARK, WriteLog

SECTOR = 512
EntryTuple = tuple[int, int, int, bytes]


def write_log(path: Path, entries: Sequence[EntryTuple], count: int | None = None) -> Path:
    """Write a log of entries: first sector, sectors, flags, and the byte that its data repeats."""
    head = struct.pack("<QQQI", logs.MAGIC, 1, len(entries) if count is None else count, SECTOR)
    parts = [head.ljust(SECTOR, b"\0")]
    for sector, sectors, flags, byte in entries:
        parts.append(struct.pack("<QQQQ", sector, sectors, flags, 0).ljust(SECTOR, b"\0"))
        if not flags & (DISCARD | MARK):
            parts.append(byte * (sectors * SECTOR))
    path.write_bytes(b"".join(parts))
    return path


def test_entries_are_read_with_the_places_of_their_data(tmp_path: Path) -> None:
    path = write_log(
        tmp_path / "log",
        [(8, 2, 0, b"a"), (0, 0, FLUSH, b""), (16, 9, DISCARD, b""), (1, 1, FUA, b"b")],
    )
    log = WriteLog.read(path)
    assert (log.writes, log.flushes) == (3, 1)
    whole = path.read_bytes()
    assert whole[log.entries[0].data :][: 2 * SECTOR] == b"a" * 2 * SECTOR
    assert whole[log.entries[3].data :] == b"b" * SECTOR


def test_entries_before_the_last_flush_are_durable(tmp_path: Path) -> None:
    path = write_log(
        tmp_path / "log",
        [(0, 1, 0, b"a"), (1, 1, 0, b"b"), (0, 0, FLUSH, b""), (2, 1, 0, b"c"), (3, 1, 0, b"d")],
    )
    log = WriteLog.read(path)
    assert [log.settled(place) for place in range(6)] == [0, 0, 0, 2, 2, 2]
    assert [len(log.pending(place)) for place in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_flush_with_data_does_not_flush_its_own_data(tmp_path: Path) -> None:
    log = WriteLog.read(write_log(tmp_path / "log", [(0, 1, 0, b"a"), (1, 1, FLUSH, b"b")]))
    assert log.settled(2) == 1
    assert [entry.sector for entry in log.pending(2)] == [1]


def test_a_mark_of_the_kernel_is_not_a_write(tmp_path: Path) -> None:
    log = WriteLog.read(write_log(tmp_path / "log", [(0, 1, MARK, b""), (1, 1, 0, b"a")]))
    assert log.writes == 1


def test_a_truncated_log_ends_at_its_last_whole_entry(tmp_path: Path) -> None:
    entries = [(0, 1, 0, b"a"), (1, 4, 0, b"b")]
    path = write_log(tmp_path / "log", entries)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(WriteLog.read(path).entries) == 1
    path.write_bytes(whole[: 4 * SECTOR])
    assert len(WriteLog.read(path).entries) == 1
    path = write_log(tmp_path / "other", [*entries, (0, 0, 0, b"")], count=9)
    assert len(WriteLog.read(path).entries) == 2


def test_an_empty_file_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert WriteLog.read(tmp_path / "log").entries == ()
    assert logs.count(tmp_path / "log") == 0


@pytest.mark.parametrize(
    "content", [b"short", b"\1" * SECTOR, struct.pack("<QQQI", logs.MAGIC, 2, 0, SECTOR)]
)
def test_a_file_that_is_not_a_write_log_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(StateError, match="is not a write log"):
        WriteLog.read(tmp_path / "log")


def test_unknown_flags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="entry 1 has flags 0x80"):
        WriteLog.read(write_log(tmp_path / "log", [(0, 1, 0, b"a"), (0, 1, 128, b"b")]))
