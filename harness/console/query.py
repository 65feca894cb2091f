"""Answers the queries that programs send to their terminal.

systemd, agetty and busybox query the cursor position to learn the size of the terminal, and wait
for the answer. Other programs query the type of the terminal or its colours. Without answers, each
login stalls. The queries and the answers are those of xterm (``ctlseqs``: DSR, DA, window
operations, dynamic colours, XTGETTCAP) and of systemd's ``src/basic/terminal-util.c``.

The rate of answers is limited. A program that waits for each answer never reaches the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from harness.console.text import cut_sequence

if TYPE_CHECKING:
    from harness.console.terminal import Terminal

_QUERY: Final = re.compile(
    rb"\x1b(?:"
    rb"\[(?P<dsr>[56])n"
    rb"|\[(?P<da>[>=]?)0?c"
    rb"|\[(?P<size>18|19)t"
    rb"|\](?P<colour>10|11);\?(?:\x07|\x1b\\)"
    rb"|P\+q[0-9A-Fa-f;]*(?P<tcap>\x1b\\)"
    rb")"
)

_MOVE: Final = re.compile(rb"\x1b\[(\d{0,5})(?:;(\d{0,5}))?[Hf]\Z")

_BURST: Final = 64.0
_RATE: Final = 64.0
_CONTEXT: Final = 8 * 1024
"""Bytes of output before a query that are interpreted to compute the cursor position."""


class QueryResponder:
    """Finds queries in the output and answers them; used by the drain thread alone.

    Args:
        reply: Called with each answer; must not block.
        columns: The width of the terminal in characters.
        rows: The height of the terminal in characters.

    Attributes:
        enabled: Whether queries are answered; off while a person's terminal answers them.
    """

    def __init__(self, reply: Callable[[bytes], None], *, columns: int, rows: int) -> None:
        self._reply = reply
        self._columns = columns
        self._rows = rows
        self._cut = b""
        self._credit = _BURST
        self._credit_at = 0.0
        self._terminal: Terminal | None = None
        self._fed = 0
        self.enabled = True

    def concerns(self, buffer: bytearray, start: int, end: int) -> bool:
        """Return whether :meth:`feed` must process ``buffer[start:end]``."""
        return bool(self._cut) or buffer.find(b"\x1b", start, end) >= 0

    def feed(self, chunk: bytes, before: bytes, offset: int, now: float) -> None:
        """Answer the queries in a chunk.

        Args:
            chunk: The chunk of output.
            before: The output before the chunk, or the last part of it.
            offset: The offset of the chunk in the output.
            now: The current time in monotonic seconds.
        """
        held = len(self._cut)
        before = before[: len(before) - held]
        text = self._cut + chunk
        cut = cut_sequence(text)
        self._cut = text[cut:]
        if not self.enabled:
            return
        self._credit = min(_BURST, self._credit + (now - self._credit_at) * _RATE)
        self._credit_at = now
        for query in _QUERY.finditer(text):
            if self._credit < 1:
                return
            self._credit -= 1
            self._answer(query, text, before, offset - held)

    def _answer(self, query: re.Match[bytes], text: bytes, before: bytes, offset: int) -> None:
        if query["dsr"] == b"5":
            self._reply(b"\x1b[0n")
        elif query["dsr"]:
            row, column = self._cursor(text, query.start(), before, offset)
            self._reply(b"\x1b[%d;%dR" % (row, column))
        elif query["da"] is not None:
            # Primary: a VT220 with colours. Secondary: the answer of xterm. Tertiary: unit id 0.
            answers = {b"": b"\x1b[?62;22c", b">": b"\x1b[>1;10;0c", b"=": b"\x1bP!|00000000\x1b\\"}
            self._reply(answers[query["da"]])
        elif query["size"]:
            code = 8 if query["size"] == b"18" else 9
            self._reply(b"\x1b[%d;%d;%dt" % (code, self._rows, self._columns))
        elif query["colour"]:
            rgb = b"ffff/ffff/ffff" if query["colour"] == b"10" else b"0000/0000/0000"
            self._reply(b"\x1b]%s;rgb:%s\x1b\\" % (query["colour"], rgb))
        else:
            self._reply(b"\x1bP0+r\x1b\\")

    def _cursor(self, text: bytes, at: int, before: bytes, offset: int) -> tuple[int, int]:
        """Return the cursor's row and column, counted from 1, at ``text[at]``."""
        move = _MOVE.search(before[-16:] + text[max(0, at - 16) : at])
        if move:
            row, column = (int(group or 1) for group in move.groups())
            return min(max(row, 1), self._rows), min(max(column, 1), self._columns)
        if self._terminal is None:
            from harness.console.terminal import Terminal

            self._terminal = Terminal(columns=self._columns, rows=self._rows)
        here = offset + at
        fresh = here - self._fed
        if 0 <= fresh <= min(_CONTEXT, at + len(before)):
            context = (before + text[:at])[-fresh:] if fresh else b""
        else:
            self._terminal.reset()
            context = (before[-_CONTEXT:] + text[:at])[-_CONTEXT:]
        self._terminal.feed(context)
        self._fed = here
        return self._terminal.cursor
