"""Typing at the pace of a reader that has no flow control.

QEMU's serial port holds back what the guest's UART has no room for. A reader that empties the UART
into a small buffer of its own defeats that: SeaBIOS' serial console has the 16 places of the BIOS
keyboard buffer, one of which stays free (``src/kbd.c``, ``enqueue_key``), and drops all further
keys. Boot loaders that read the keyboard by the BIOS get the rest. So the text is typed in pieces,
each after the echo of the piece before it.
"""

from __future__ import annotations

import re
from typing import Final

from harness.console.expect import timeout_error
from harness.console.stream import Stream
from harness.console.text import cut_sequence, strip_escapes
from harness.deadline import Deadline

_PIECE: Final = re.compile(rb"[\x20-\x7e]{1,7}|[^\x20-\x7e]{1,7}")
"""The bytes that are typed at once: printable ones, whose echo is known, or others.

Two pieces fit into 15 places, should a redrawn line have been taken for the echo of one.
"""

_HINT: Final = (
    "type without paced=True where the reader does not echo, as at a password, or has flow control"
)


def type_paced(stream: Stream, data: bytes, deadline: Deadline) -> int:
    """Type ``data`` in pieces; return the number of bytes that were not written.

    The echo of a piece is its printable characters in their order, with any output in between: a
    line editor draws more than the character. Blanks do not count, because a terminal may move the
    cursor instead. A key that has no echo of its own is typed alone, and any output counts.

    Raises:
        WaitTimeoutError: The deadline passed before the echo.
        HarnessError: The console has failed.
    """
    pieces: list[bytes] = []
    for piece in _PIECE.findall(data):
        # Of several keys without an echo of their own, the output for the first would let the next
        # piece follow while the others still fill the reader's buffer.
        pieces += [piece] if _echo_of(piece) else [bytes([key]) for key in piece]
    typed = 0
    for number, piece in enumerate(pieces, 1):
        mark = stream.total
        left = stream.outbox.send(piece, deadline)
        typed += len(piece) - left
        if left:
            break
        if number < len(pieces) or _echo_of(piece):
            _wait_for_echo(stream, piece, mark, deadline)
    return len(data) - typed


def _echo_of(piece: bytes) -> bytes:
    return bytes(byte for byte in piece if 0x20 < byte < 0x7F)


def _wait_for_echo(stream: Stream, piece: bytes, start: int, deadline: Deadline) -> None:
    missing = _echo_of(piece)
    any_output = not missing
    held = b""
    while missing or any_output:
        end = stream.wait_past(start, deadline.timeout())
        if end <= start:
            if not deadline.expired:
                continue  # The load of the host has stretched it.
            shown = piece.decode("utf-8", "replace")
            raise timeout_error(stream, f"the echo of {shown!r}", deadline, hint=_HINT)
        any_output = False
        held += stream.read(start, end)
        start = end
        cut = cut_sequence(held)
        for byte in strip_escapes(held[:cut]):
            if missing and byte == missing[0]:
                missing = missing[1:]
        held = held[cut:]
