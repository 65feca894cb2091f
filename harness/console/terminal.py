"""The emulated terminal, which shows the output of the guest as a person would see it.

pyte interprets the output. It is slow (about 1 MB/s), so it runs only when a screen is requested,
and only on the end of the output. Sequences on which pyte raises, and strings that it would draw
by mistake, are removed first.
"""

from __future__ import annotations

import codecs
import re
import warnings
from dataclasses import dataclass
from typing import Any, Final

from harness.console.text import cut_sequence

BACKLOG: Final = 256 * 1024
"""Bytes of output that are interpreted at most when the screen is behind."""

PIECE: Final = 1024
"""Bytes of output after which a wait for a text searches the screen."""

_CURSOR_KEYS: Final = 1 << 5
"""DECCKM, which is private mode 1, as pyte stores it: private modes are shifted by five bits."""

_DROP: Final = re.compile(
    rb"\x1b(?:"
    rb"[PX^_][^\x1b]{0,4096}\x1b\\"  # DCS, SOS, PM, APC: pyte would draw them
    rb"|\[[<=>][0-?]*[ -/]*[@-~]"  # private but not DEC's: pyte confuses them with public ones
    rb"|\[\?[0-9;]*[ -/]*[^0-9;hl -/]"  # DEC private: pyte supports modes, raises on others
    rb"|\[[0-?]*[ -/]+[@-~]"  # intermediates: cursor shape, soft reset
    rb"|\[[0-9;]*[0-9]{6,}[0-9;]*[@-~]"  # counts beyond the size of any screen
    rb"|\[[0-9;]*[:][0-9;:]*[@-~]"  # SGR with colons
    rb"|\[[56]n|\[[0-9;]*t"  # queries
    rb"|\[\?7l"  # no line wrap: SeaBIOS leaves it so to the kernel, whose long lines would be cut
    rb")"
)


@dataclass(frozen=True, slots=True)
class Screen:
    """The text on the terminal at one moment.

    Attributes:
        lines: The lines from the top, without trailing blanks.
        cursor: The row and the column of the cursor, counted from 1.
    """

    lines: tuple[str, ...]
    cursor: tuple[int, int]

    @property
    def text(self) -> str:
        """The lines joined by newlines, without empty lines at the end."""
        return "\n".join(self.lines).rstrip("\n")

    def contains(self, pattern: str | re.Pattern[str]) -> bool:
        """Return whether the screen contains a plain text or a match of a compiled pattern."""
        return self.find(pattern) is not None

    def find(self, pattern: str | re.Pattern[str]) -> str | None:
        """Return the matching text on the screen; ``None`` if there is none."""
        if isinstance(pattern, str):
            return pattern if pattern in self.text else None
        match = pattern.search(self.text)
        return match.group() if match else None

    def __str__(self) -> str:
        return self.text


class Terminal:
    """An emulated terminal; for one thread at a time.

    Args:
        columns: The width in characters.
        rows: The height in characters.
    """

    def __init__(self, *, columns: int = 80, rows: int = 24) -> None:
        import pyte

        self._screen: Any = pyte.Screen(columns, rows)
        self._stream: Any = pyte.Stream(self._screen)
        self.reset()

    def reset(self) -> None:
        """Return to the state after power on."""
        self._screen.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._stream.attach(self._screen)
        # With use_utf8, pyte ignores the line drawing set and shows boxes as letters. This class
        # decodes the UTF-8 instead.
        self._stream.use_utf8 = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cut = b""

    def feed(self, data: bytes) -> None:
        """Interpret output; never raises, whatever the output is."""
        data = self._cut + data
        cut = cut_sequence(data)
        self._cut = data[cut:]
        text = self._decoder.decode(_DROP.sub(b"", data[:cut]))
        # In UTF-8 mode, no terminal interprets C1 controls.
        text = _C1.sub("�", text)
        for start in range(0, len(text), PIECE):
            try:
                self._stream.feed(text[start : start + PIECE])
            except Exception:
                # pyte raises on some sequences. It resets its parser first, so only the rest of
                # this piece is lost.
                continue

    @property
    def application_keys(self) -> bool:
        """Whether the guest switched the cursor keys to application mode (DECCKM)."""
        return _CURSOR_KEYS in self._screen.mode

    @property
    def cursor(self) -> tuple[int, int]:
        """The row and the column of the cursor, counted from 1."""
        cursor = self._screen.cursor
        # After a character in the last column, the cursor of pyte is beyond that column.
        return min(cursor.y + 1, self._screen.lines), min(cursor.x + 1, self._screen.columns)

    def snapshot(self) -> Screen:
        """Return the current screen."""
        return Screen(tuple(line.rstrip() for line in self._screen.display), self.cursor)


_C1: Final = re.compile("[\x80-\x9f]")
