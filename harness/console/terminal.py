"""The terminal a person would have in front of them, made of what the guest prints.

pyte interprets the output; it is slow (about 1 MB/s), so that it is fed only when somebody looks,
and then only the last of it. What pyte cannot take is kept from it: sequences it would raise on,
strings it would draw.
"""

from __future__ import annotations

import codecs
import re
import warnings
from dataclasses import dataclass
from typing import Any, Final

from harness.console.text import cut_sequence

BACKLOG: Final = 256 * 1024
"""Bytes of output, at most, from which a screen is made that nobody looked at for a while."""

PIECE: Final = 1024
"""Bytes after which a wait for a text looks at the screen again."""

_CURSOR_KEYS: Final = 1 << 5
"""pyte shifts private modes by five bits; DECCKM is private mode 1."""

_DROP: Final = re.compile(
    rb"\x1b(?:"
    rb"[PX^_][^\x1b]{0,4096}\x1b\\"  # DCS, SOS, PM, APC: pyte would draw them
    rb"|\[[<=>][0-?]*[ -/]*[@-~]"  # private but not of DEC: pyte takes them for the public ones
    rb"|\[\?[0-9;]*[ -/]*[^0-9;hl -/]"  # DEC private: pyte has only the modes, raises on others
    rb"|\[[0-?]*[ -/]+[@-~]"  # intermediates: cursor shape, soft reset
    rb"|\[[0-9;]*[0-9]{6,}[0-9;]*[@-~]"  # no screen has so many lines
    rb"|\[[0-9;]*[:][0-9;:]*[@-~]"  # SGR with colons
    rb"|\[[56]n|\[[0-9;]*t"  # questions
    rb")"
)


@dataclass(frozen=True, slots=True)
class Screen:
    """What a person would see now.

    Attributes:
        lines: The lines from the top, without trailing blanks.
        cursor: Row and column of the cursor, from 1.
    """

    lines: tuple[str, ...]
    cursor: tuple[int, int]

    @property
    def text(self) -> str:
        """The lines joined by newlines, without empty lines at the end."""
        return "\n".join(self.lines).rstrip("\n")

    def contains(self, wanted: str | re.Pattern[str]) -> bool:
        """Whether the text, or what fits the regular expression, is on the screen."""
        return self.find(wanted) is not None

    def find(self, wanted: str | re.Pattern[str]) -> str | None:
        """Return what on the screen is the text or fits the regular expression."""
        if isinstance(wanted, str):
            return wanted if wanted in self.text else None
        found = wanted.search(self.text)
        return found.group() if found else None

    def __str__(self) -> str:
        return self.text


class Terminal:
    """An emulated terminal; not safe to share between threads.

    Args:
        columns: Width in characters.
        rows: Height in characters.
    """

    def __init__(self, *, columns: int = 80, rows: int = 24) -> None:
        import pyte

        self._screen: Any = pyte.Screen(columns, rows)
        self._stream: Any = pyte.Stream(self._screen)
        self.reset()

    def reset(self) -> None:
        """Switch it off and on again."""
        self._screen.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._stream.attach(self._screen)
        # Otherwise pyte ignores line drawing, and boxes are made of letters. The decoding is ours.
        self._stream.use_utf8 = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cut = b""

    def feed(self, data: bytes) -> None:
        """Show output. Whatever it holds, nothing is raised."""
        data = self._cut + data
        cut = cut_sequence(data)
        self._cut = data[cut:]
        text = self._decoder.decode(_DROP.sub(b"", data[:cut]))
        # C1 controls are two bytes in UTF-8; no terminal in UTF-8 mode takes them for commands.
        text = _C1.sub("�", text)
        for start in range(0, len(text), PIECE):
            try:
                self._stream.feed(text[start : start + PIECE])
            except Exception:
                # pyte raises on sequences it does not know well; it has reset its parser, so that
                # only the rest of this piece is missing.
                continue

    @property
    def application_keys(self) -> bool:
        """Whether the guest switched the cursor keys to application mode (DECCKM)."""
        return _CURSOR_KEYS in self._screen.mode

    @property
    def cursor(self) -> tuple[int, int]:
        """The cursor's row and column, from 1."""
        cursor = self._screen.cursor
        # After a character in the last column pyte's cursor stands beyond it.
        return min(cursor.y + 1, self._screen.lines), min(cursor.x + 1, self._screen.columns)

    def snapshot(self) -> Screen:
        """Return what is on the screen."""
        return Screen(tuple(line.rstrip() for line in self._screen.display), self.cursor)


_C1: Final = re.compile("[\x80-\x9f]")
