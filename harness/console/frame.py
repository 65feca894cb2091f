r"""Results of commands on a line that anybody may write to.

The kernel prints wherever it likes, daemons write to the console, and a guest may be hostile. So a
result travels in a frame, with a tag drawn for this one command::

    <TAG STATUS LENGTH\n  PAYLOAD  TAG STATUS LENGTH>

``STATUS`` is the exit status, ``LENGTH`` the payload's in bytes. Noise only ever adds bytes. Wherever
it adds them, header and trailer no longer agree, or the length no longer fits, and the frame is
refused: a broken frame is never taken for a whole one, and the guest is asked for the result again.
Output cannot forge a frame, for it does not know the tag.

The terminal driver of the guest may turn each newline into CR LF. Whether it does shows in the
newline of the header, and is undone in the payload.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

_NOISE: Final = 4096
_LONGEST_HEADER: Final = 64


def new_tag() -> str:
    """Return a tag nobody can guess: 48 random bits in eight characters, safe in a file's name."""
    return secrets.token_urlsafe(6)


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame.

    Attributes:
        status: The exit status in it.
        payload: The bytes between header and trailer.
    """

    status: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Header:
    status: int
    length: int
    mapped: bool  # whether the terminal turns LF into CR LF
    trailer: bytes


class FrameParser:
    """Finds the frame of one tag in a stream of chunks; linear time, memory bounded by the frame.

    Args:
        tag: The tag.
    """

    def __init__(self, tag: str) -> None:
        name = re.escape(tag.encode())
        self._tag = tag.encode()
        self._header = re.compile(rb"<%s (\d{1,3}) (\d{1,12})(\r?\n)" % name)
        self._debris = re.compile(rb"%s \d{1,3} \d{1,12}>" % name)
        self._unknown = b"<%s ???>" % self._tag
        self._buffer = bytearray()
        self._head: _Header | None = None
        self._searched = 0  # up to here there is no trailer
        self._counted = 0  # up to here CR LF have been counted
        self._newlines = 0  # how many
        self.broken = 0
        """How often a frame was seen that was not whole."""
        self.lost: tuple[int, int] | None = None
        """Status and length of the last frame that was broken behind its header."""
        self.unknown = False
        """Whether the guest said that it has no result for this tag."""
        self._noise = bytearray()

    @property
    def length(self) -> int | None:
        """The length of the payload, while inside a frame."""
        return self._head.length if self._head else None

    @property
    def tail(self) -> bytes:
        """The end of what came, while outside a frame."""
        return b"" if self._head else bytes(self._noise[-512:] + self._buffer)

    def feed(self, data: bytes) -> Frame | None:
        """Take output; return the frame once it is whole."""
        self._buffer += data
        while True:
            if self._head is None and not self._find_header():
                return None
            frame, again = self._find_trailer()
            if frame is not None or not again:
                return frame

    def _find_header(self) -> bool:
        found = self._header.search(self._buffer)
        if found is None:
            self._drop_debris()
            return False
        self._note(bytes(self._buffer[: found.start()]))
        status, length, newline = found.groups()
        trailer = b"%s %s %s>" % (self._tag, status, length)
        self._head = _Header(int(status), int(length), newline == b"\r\n", trailer)
        del self._buffer[: found.end()]
        self._searched = self._counted = self._newlines = 0
        return True

    def _drop_debris(self) -> None:
        """Drop what holds no header; a trailer without one is a broken frame."""
        if self._unknown in self._buffer:
            self.unknown = True
        keep = max(0, len(self._buffer) - _LONGEST_HEADER)
        for found in self._debris.finditer(self._buffer):
            self.broken += 1
            keep = max(keep, found.end())
        self._note(bytes(self._buffer[:keep]))
        del self._buffer[:keep]

    def _find_trailer(self) -> tuple[Frame | None, bool]:
        """Return the frame, if it is whole, and whether to look for a header again."""
        assert self._head is not None
        head = self._head
        while True:
            at = self._buffer.find(head.trailer, max(0, self._searched - len(head.trailer)))
            if at < 0:
                return None, self._overdue(head)
            if at >= head.length:
                raw = bytes(self._buffer[:at])
                payload = raw.replace(b"\r\n", b"\n") if head.mapped else raw
                if len(payload) == head.length:
                    del self._buffer[: at + len(head.trailer)]
                    return Frame(head.status, payload), False
                if len(payload) > head.length:
                    return None, self._restart()
            # A trailer before its time: the command's own output has it.
            self._searched = at + len(head.trailer) + 1

    def _overdue(self, head: _Header) -> bool:
        """Give the frame up if it should have ended by now; return whether to look again."""
        self._newlines += self._buffer.count(b"\r\n", max(0, self._counted - 1))
        self._counted = self._searched = len(self._buffer)
        received = len(self._buffer) - (self._newlines if head.mapped else 0)
        return received >= head.length + len(head.trailer) + 2 and self._restart()

    def _restart(self) -> bool:
        """Count the frame as broken; look for another header behind its own."""
        if self._head is not None:
            self.lost = self._head.status, self._head.length
        self.broken += 1
        self._head = None
        return True

    def _note(self, noise: bytes) -> None:
        self._noise += noise[-_NOISE:]
        del self._noise[:-_NOISE]
