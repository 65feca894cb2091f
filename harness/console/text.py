"""Guest output without its escape sequences, for messages and for the watchers.

The log keeps every byte. The sequences are those of ECMA-48 (CSI, OSC, DCS) and xterm's ``ctlseqs``.
"""

from __future__ import annotations

import re
from typing import Final

_MOVES: Final = frozenset(b"ABEFHJdf")
"""The final bytes of CSI sequences that move the cursor: the text after them is on another line."""

_ESCAPE: Final = re.compile(
    rb"\x1b(?:"
    rb"\[[0-?]*[ -/]*([@-~])"  # CSI
    rb"|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"  # OSC
    rb"|[PX^_][^\x1b]{0,4096}\x1b\\"  # DCS, SOS, PM, APC
    rb"|[ -/]{0,4}[0-OQ-WYZ`-~\\]"  # two and three characters: charsets, DECSC, RIS
    rb")"
)

_CUT: Final = re.compile(
    rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,4}|\][^\x07\x1b]{0,4096}\x1b?|[PX^_][^\x1b]{0,4096}\x1b?"
    rb"|[ -/]{0,4})?\Z"
)

MAX_SEQUENCE: Final = 4100
"""The bytes up to which an incomplete escape sequence is held back for its end."""


def _replacement(match: re.Match[bytes]) -> bytes:
    final = match.group(1)
    if final is None:
        return b""
    if final[0] in _MOVES:
        return b"\n"
    return b" " if final == b"C" else b""


def strip_escapes(data: bytes) -> bytes:
    """Return ``data`` without escape sequences; a sequence that moves the cursor is a newline."""
    return _ESCAPE.sub(_replacement, data) if b"\x1b" in data else data


def cut_sequence(data: bytes) -> int:
    """Return the index of an incomplete escape sequence at the end; ``len(data)`` if none."""
    at = data.rfind(b"\x1b", max(0, len(data) - MAX_SEQUENCE))
    if at < 0 or not _CUT.match(data, at):
        return len(data)
    # This ESC may start the terminator (ESC \\) of a longer sequence.
    before = data.rfind(b"\x1b", max(0, at - MAX_SEQUENCE), at)
    return before if before >= 0 and _CUT.match(data, before) else at


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(data: bytes) -> str:
    """Return guest output as printable text, without escape sequences and control characters.

    Invalid UTF-8 is replaced. Of a line that carriage returns overwrote, the last version remains.
    """
    text = strip_escapes(data).decode("utf-8", "replace").replace("\r\n", "\n")
    lines = []
    for line in text.split("\n"):
        pieces = [piece for piece in line.split("\r") if piece]
        lines.append(_CONTROL.sub("", pieces[-1]) if pieces else "")
    return "\n".join(lines)


def last_lines(data: bytes, count: int, *, width: int = 400) -> str:
    """Return the last ``count`` non-empty lines of guest output as plain text.

    Args:
        data: The raw output, or the end of it.
        count: The number of lines.
        width: The number of characters at which longer lines are cut.
    """
    lines = [line.rstrip() for line in plain(data).split("\n")]
    kept = [line for line in lines if line][-count:]
    return "\n".join(line if len(line) <= width else line[:width] + " ..." for line in kept)
