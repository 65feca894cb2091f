"""The text of a VGA adapter from its registers and its memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from harness.errors import QmpError
from harness.qemu.qmp import Qmp
from harness.qemu.vga import VgaText, read_text

BASE = 0xFD000000
CELL = 4


class Adapter:
    """QEMU's monitor with a VGA adapter; each command has to come while the guest stands still."""

    def __init__(self, columns: int = 80, rows: int = 25, *, crtc: int = 0x3D4) -> None:
        self.misc = 0x67 if crtc == 0x3D4 else 0x66
        scan_lines = rows * 16 - 1
        self.crtc = crtc
        self.registers: dict[int, dict[int, int]] = {
            crtc: {
                0x01: columns - 1,
                0x07: (scan_lines >> 8 & 1) << 1 | (scan_lines >> 9 & 1) << 6,
                0x09: 0x4F,  # bit 6 is one of the line compare
                0x0C: 0,
                0x0D: 0,
                0x0E: 0,
                0x0F: 0,
                0x12: scan_lines & 0xFF,
                0x13: columns // 2,
            },
            0x3CE: {0x06: 0x0E},
        }
        self.indices = {crtc: 0x0A, 0x3CE: 0x05}
        self.memory = bytearray(b" \x07\x00\x00" * 0x20000)
        self.address = BASE
        self.still = False
        self.files: list[Path] = []

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        self.still = True
        yield
        self.still = False

    def human(self, command: str) -> str:
        assert self.still
        if write := re.fullmatch(r"o /b 0x([0-9a-f]+) 0x([0-9a-f]+)", command):
            self.indices[int(write[1], 16)] = int(write[2], 16)
            return ""
        read = re.fullmatch(r"i /b 0x([0-9a-f]+)(?:\.0x([0-9a-f]+))?", command)
        assert read is not None, command
        port = int(read[1], 16)
        if read[2] is not None:
            self.indices[port] = int(read[2], 16)
            return f"portb[0x{port + 1:04x}] = 0x{self.registers[port][int(read[2], 16)]:02x}\r\n"
        value = self.misc if port == 0x3CC else self.indices[port]
        return f"portb[0x{port:04x}] = 0x{value:02x}\r\n"

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        assert self.still
        if command == "query-pci":
            network = {"class_info": {"class": 0x0200}, "regions": []}
            regions = [{"bar": 2, "address": 1}, {"bar": 0, "address": self.address}]
            vga = {"class_info": {"class": 0x0300}, "regions": regions}
            return [{"devices": [network, vga]}]
        assert command == "pmemsave"
        assert arguments is not None
        start = arguments["val"] - BASE
        path = Path(arguments["filename"])
        path.write_bytes(self.memory[start : start + arguments["size"]])
        self.files.append(path)
        return {}

    def put(self, cell: int, text: bytes) -> None:
        self.memory[cell * CELL : (cell + len(text)) * CELL : CELL] = text

    def set_word(self, high: int, value: int) -> None:
        self.registers[self.crtc][high] = value >> 8
        self.registers[self.crtc][high + 1] = value & 0xFF


def read(adapter: Adapter, folder: Path) -> VgaText | None:
    indices = dict(adapter.indices)
    text = read_text(cast("Qmp", adapter), folder / "memory")
    assert adapter.indices == indices
    assert not any(path.exists() for path in adapter.files)
    return text


@pytest.mark.parametrize(
    ("columns", "rows", "crtc"),
    [(80, 25, 0x3D4), (40, 25, 0x3D4), (132, 60, 0x3D4), (80, 25, 0x3B4)],
)
def test_text_is_read_in_every_size(columns: int, rows: int, crtc: int, tmp_path: Path) -> None:
    adapter = Adapter(columns, rows, crtc=crtc)
    adapter.put(0, b"SeaBIOS")
    adapter.put(columns * rows - 4, b"last")
    adapter.set_word(0x0E, columns + 2)
    text = read(adapter, tmp_path)
    assert text is not None
    assert len(text.lines) == rows
    assert text.lines[0] == "SeaBIOS"
    assert text.lines[-1] == "last".rjust(columns)
    assert text.cursor == (2, 3)


def test_a_screen_that_was_scrolled_begins_where_the_adapter_begins(tmp_path: Path) -> None:
    adapter = Adapter()
    adapter.put(0, b"above")
    adapter.put(300 * 80, b"shown")
    adapter.set_word(0x0C, 300 * 80)
    adapter.set_word(0x0E, 301 * 80)
    text = read(adapter, tmp_path)
    assert text is not None
    assert text.lines[0] == "shown"
    assert text.cursor == (2, 1)


def test_rows_in_memory_may_be_longer_than_those_on_the_screen(tmp_path: Path) -> None:
    adapter = Adapter()
    adapter.registers[0x3D4][0x13] = 64
    adapter.put(79, b"|hidden")
    adapter.put(128, b"second")
    text = read(adapter, tmp_path)
    assert text is not None
    assert text.lines[:2] == ("|".rjust(80), "second")


def test_characters_are_those_of_a_pc(tmp_path: Path) -> None:
    adapter = Adapter()
    adapter.put(0, bytes(range(256)))
    text = read(adapter, tmp_path)
    assert text is not None
    shown = "".join(line.ljust(80) for line in text.lines)[:256]
    assert shown[:4] == " ☺☻♥"
    assert shown[0x1F:0x22] == "▼ !"
    assert shown[0x41] == "A"
    assert shown[0x7F] == "⌂"
    assert shown[0xC9:0xCE] == "╔╩╦╠═"
    assert shown[0xFE:] == "■ "
    assert len(set(shown)) == 254  # blanks are 00h, 20h and FFh


@pytest.mark.parametrize("cursor", [80 * 25, 0xFFFF])
def test_a_cursor_off_the_screen_is_in_its_corner(cursor: int, tmp_path: Path) -> None:
    adapter = Adapter()
    adapter.set_word(0x0E, cursor)
    text = read(adapter, tmp_path)
    assert text is not None
    assert text.cursor == (1, 1)


def test_a_graphics_mode_has_no_text(tmp_path: Path) -> None:
    adapter = Adapter()
    adapter.registers[0x3CE][0x06] = 0x05
    assert read(adapter, tmp_path) is None


def test_before_the_firmware_sets_a_mode_the_screen_is_empty(tmp_path: Path) -> None:
    adapter = Adapter()
    for register in adapter.registers[0x3D4]:
        adapter.registers[0x3D4][register] = 0
    assert read(adapter, tmp_path) == VgaText((), (1, 1))
    adapter = Adapter()
    adapter.address = -1
    assert read(adapter, tmp_path) == VgaText((), (1, 1))


def test_an_answer_that_is_no_value_is_an_error(tmp_path: Path) -> None:
    class Refusing(Adapter):
        def human(self, command: str) -> str:
            return "unknown command: 'i'"

    with pytest.raises(QmpError, match="unknown command"):
        read_text(cast("Qmp", Refusing()), tmp_path / "memory")
