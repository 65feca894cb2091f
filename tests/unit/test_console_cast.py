"""The recording: a valid asciicast of bounded size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.console.cast import CastWriter
from tests.unit.test_console_support import SOON, open_console


def _load(path: Path) -> tuple[dict[str, Any], list[tuple[float, str, str]]]:
    header, *events = [json.loads(line) for line in path.read_text().splitlines()]
    return header, [(at, code, data) for at, code, data in events]


def test_the_recording_has_all_output_in_order(tmp_path: Path) -> None:
    text = "größe \x1b[31m│\x1b[0m\r\n" * 20_000
    with open_console(tmp_path) as (console, guest):
        guest.sendall(text.encode())
        guest.sendall(b"\xff\xfeEND")
        console.expect_exact("END", deadline=SOON)
    header, events = _load(tmp_path / "serial.cast")
    assert header["version"] == 2
    assert (header["width"], header["height"], header["title"]) == (80, 24, "guest")
    assert "".join(data for _, code, data in events if code == "o") == text + "��END"
    times = [at for at, _, _ in events]
    assert times == sorted(times) and times[0] >= 0


def test_a_character_may_be_split_across_chunks(tmp_path: Path) -> None:
    path = tmp_path / "cast"
    writer = CastWriter(path, title="x")
    now = time.monotonic()
    for number, byte in enumerate("é│".encode()):
        writer.feed(memoryview(bytes([byte])), now + number)
        writer.flush(now + number)
    writer.close()
    assert "".join(data for _, _, data in _load(path)[1]) == "é│"


def test_output_is_recorded_without_waiting_for_more(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"now")
        console.expect("now", deadline=SOON)
        path = tmp_path / "serial.cast"
        end = time.monotonic() + SOON
        # No more output follows, and the console stays open.
        while "now" not in path.read_text():
            assert time.monotonic() < end
            time.sleep(0.005)


def test_a_flood_is_dropped_with_a_marker_and_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cast"
    writer = CastWriter(path, title="x")
    now = time.monotonic()
    chunk = b"flood\r\n" * 30_000
    for _ in range(400):
        writer.feed(memoryview(chunk), now)
    writer.feed(memoryview(b"THE END"), now)
    writer.close()
    _, events = _load(path)
    assert path.stat().st_size < 12 << 20
    (marker,) = [data for _, code, data in events if code == "m"]
    dropped = int(marker.split()[0])
    shown = "".join(data for _, code, data in events if code == "o")
    assert shown.endswith("flood\r\nTHE END")
    assert len(shown) + dropped == 400 * len(chunk) + len("THE END")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full: run on Linux")
def test_a_full_disk_ends_only_the_recording() -> None:
    writer = CastWriter(Path("/dev/full"), title="x")
    writer.feed(memoryview(b"x"), time.monotonic() + 1)
    writer.close()
    assert writer.error is not None
