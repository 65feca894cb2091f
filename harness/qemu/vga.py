"""The text on QEMU's VGA adapter, read from outside as the adapter shows it.

In text mode a VGA adapter shows cells from its own memory: one byte is the character, one the colours.
The registers of its CRT controller say how many cells a row has, and which cell is the first one:
a kernel that scrolls moves that start. So both are read, and a guest that runs in between would show
half of each. QEMU names no register in QMP; its human monitor reads and writes ports as the guest does
(``i`` and ``o`` in ``hmp-commands.hx``). The index of a register is a register too, and the guest may
be between writing it and using it. So the guest stands still meanwhile, and finds each index as it was.

The memory is read where the adapter's first PCI region is, not at 0xB8000. There QEMU keeps each cell
in four bytes, the character first, the colours second (``vga_draw_text`` in ``hw/display/vga.c``).
Reads of it have no side effect: those at 0xB8000 fill the latches of the adapter in some modes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import HostError, QmpError
from harness.qemu.qmp import Qmp

_MISC: Final = 0x3CC
"""Bit 0 is set where the CRT controller is at 0x3D4, as on a colour screen; else it is at 0x3B4."""

_GRAPHICS: Final = 0x3CE
_CRTC_COLOUR: Final = 0x3D4
_CRTC_MONO: Final = 0x3B4

_GRAPHICS_MISC: Final = 0x06
"""Of the graphics controller: bit 0 is set in graphics modes. The VESA modes of QEMU set it too."""

_WIDTH: Final = 0x01
_OVERFLOW: Final = 0x07
_CELL_HEIGHT: Final = 0x09
_START_HIGH: Final = 0x0C
_START_LOW: Final = 0x0D
_CURSOR_HIGH: Final = 0x0E
_CURSOR_LOW: Final = 0x0F
_HEIGHT: Final = 0x12
_ROW_OFFSET: Final = 0x13
"""Registers of the CRT controller, by the numbers that IBM's VGA gave them."""

_CELL: Final = 4
_MOST: Final = 0x10000
"""Cells that are read at most: a row of text needs one, and its memory has 64 Ki of them."""

_VGA_CLASS: Final = 0x0300
"""The PCI class of a VGA adapter."""

_VALUE: Final = re.compile(r"= 0x([0-9a-f]+)")

_LOW: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
"""The glyphs of the codes below the blank in a PC's character set; Python's ``cp437`` has controls."""

_CP437: Final = _LOW + bytes(range(0x20, 0xFF)).decode("cp437").replace("\x7f", "⌂") + " "


@dataclass(frozen=True, slots=True)
class VgaText:
    """The text that an adapter shows.

    Attributes:
        lines: The rows from the top, without trailing blanks; none while no mode is set.
        cursor: The row and the column of the cursor, counted from 1; (1, 1) where it is off the screen.
    """

    lines: tuple[str, ...]
    cursor: tuple[int, int]


def read_text(qmp: Qmp, scratch: Path) -> VgaText | None:
    """Return the text on the VGA adapter; ``None`` in a graphics mode, which has no text.

    Characters are those of code page 437, the set of a PC's own font. A guest that loads a font of
    another order shows other glyphs than these for codes above 126.

    Args:
        qmp: The monitor. The guest stands still for some milliseconds if it runs.
        scratch: A path for QEMU to write the adapter's memory to; the file is removed.

    Raises:
        QmpError: QEMU refused a command.
        HarnessError: The failure of the scope.
        HostError: The file could not be read.
    """
    with qmp.standing_still():
        memory = _memory(qmp)
        # A port of the adapter is read before its memory: under KVM that flushes the guest's writes
        # which the kernel has collected (portio_list_set_flush_coalesced in hw/display/vga.c).
        colour = _port(qmp, _MISC) & 1
        if _indexed(qmp, _GRAPHICS, (_GRAPHICS_MISC,))[_GRAPHICS_MISC] & 1:
            return None
        crtc = _indexed(
            qmp,
            _CRTC_COLOUR if colour else _CRTC_MONO,
            (
                _WIDTH,
                _OVERFLOW,
                _CELL_HEIGHT,
                _START_HIGH,
                _START_LOW,
                _CURSOR_HIGH,
                _CURSOR_LOW,
                _HEIGHT,
                _ROW_OFFSET,
            ),
        )
        columns = crtc[_WIDTH] + 1
        overflow = crtc[_OVERFLOW]
        scan_lines = crtc[_HEIGHT] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3
        rows = (scan_lines + 1) // ((crtc[_CELL_HEIGHT] & 0x1F) + 1)
        pitch = crtc[_ROW_OFFSET] * 2
        count = (rows - 1) * pitch + columns
        if memory is None or columns * rows <= 1 or not 0 < count <= _MOST:
            return VgaText((), (1, 1))
        start = crtc[_START_HIGH] << 8 | crtc[_START_LOW]
        cursor = (crtc[_CURSOR_HIGH] << 8 | crtc[_CURSOR_LOW]) - start
        try:
            qmp.execute(
                "pmemsave",
                {
                    "val": memory + start * _CELL,
                    "size": count * _CELL,
                    "filename": str(scratch),
                },
            )
            cells = scratch.read_bytes()[::_CELL]
        except OSError as error:
            raise HostError(f"the memory of the VGA adapter could not be read: {error}") from error
        finally:
            scratch.unlink(missing_ok=True)
    lines = (cells[row * pitch : row * pitch + columns] for row in range(rows))
    row, column = divmod(cursor, pitch) if pitch else (0, cursor)
    on_screen = 0 <= row < rows and 0 <= column < columns
    return VgaText(
        tuple("".join(_CP437[code] for code in line).rstrip() for line in lines),
        (row + 1, column + 1) if on_screen else (1, 1),
    )


def _memory(qmp: Qmp) -> int | None:
    """Return the address of the adapter's memory; ``None`` while the firmware has set none."""
    for bus in qmp.execute("query-pci"):
        for device in bus["devices"]:
            if device["class_info"]["class"] == _VGA_CLASS:
                address = next(part["address"] for part in device["regions"] if part["bar"] == 0)
                return int(address) if address > 0 else None
    raise QmpError("the machine has no VGA adapter on its first PCI bus")


def _indexed(qmp: Qmp, port: int, registers: tuple[int, ...]) -> dict[int, int]:
    """Return the values of registers behind an index port, and leave the index as it was."""
    index = _port(qmp, port)
    try:
        return {register: _port(qmp, port, register) for register in registers}
    finally:
        qmp.human(f"o /b 0x{port:x} 0x{index:x}")


def _port(qmp: Qmp, port: int, index: int | None = None) -> int:
    """Return the byte of a port; with an index, that of the register behind it."""
    command = f"i /b 0x{port:x}" + ("" if index is None else f".0x{index:x}")
    answer = qmp.human(command)
    value = _VALUE.search(answer)
    if value is None:
        raise QmpError(f"monitor command {command}: {answer.strip()}")
    return int(value[1], 16)
