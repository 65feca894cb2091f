r"""Results of commands on a line that anybody may write to.

The kernel prints wherever it likes, daemons write to the console, and a guest may be hostile. So a
result travels in a frame, with a tag drawn for this one command::

    <TAG STATUS LENGTH [CRC]\n  PAYLOAD  TAG STATUS LENGTH [CRC]>

``STATUS`` is the exit status, ``LENGTH`` the payload's in bytes, ``CRC`` its checksum by
``cksum``. Noise only ever adds bytes. Wherever it adds them, header and trailer no longer agree,
or the length no longer fits, and the frame is refused: a broken frame is never taken for a whole
one, and the guest is asked for the result again. Output cannot forge a frame, for it does not know
the tag. For the same reason whatever looks like a header or a trailer inside a frame shows that
the frame was broken.

The terminal driver of the guest may turn each newline into CR LF. Whether it does shows in the
newline of the header, and is undone in the payload. That makes a CR of the payload and an LF of
noise behind it look like one newline: a payload with a CR has a checksum.
"""

from __future__ import annotations

import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

_NOISE: Final = 4096
_LONGEST_MARK: Final = 64


def new_tag(number: int = 0) -> str:
    """Return a tag: a number for the guest to name things by, a dot, and 36 random bits.

    What carries the number may be seen by programs of the guest; the bits nobody can guess in the
    time of a command.
    """
    return f"{number}.{secrets.token_urlsafe(5)[:6]}"


_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def cksum(data: bytes) -> int:
    """Return the checksum that POSIX ``cksum`` prints.

    It is zlib's CRC with the bits of each byte the other way round, begun at zero, over the data
    and its length (POSIX.1-2017, ``cksum``).
    """
    length = len(data)
    tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
    reflected = zlib.crc32((data + tail).translate(_REVERSED), 0xFFFFFFFF)
    return int(f"{reflected:032b}"[::-1], 2)


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
class Header:
    """What a frame says of itself.

    Attributes:
        status: The exit status.
        length: The payload's length in bytes.
        checksum: The payload's checksum, if there is one.
        mapped: Whether the terminal turns LF into CR LF.
        trailer: How the frame ends.
    """

    status: int
    length: int
    checksum: int | None
    mapped: bool
    trailer: bytes

    def fits(self, payload: bytes) -> bool:
        """Whether this is the payload."""
        if len(payload) != self.length:
            return False
        return self.checksum is None or self.checksum == cksum(payload)


class FrameParser:
    """Finds the frame of one tag in a stream of chunks; linear time, memory bounded by the frame.

    Args:
        tag: The tag.
    """

    def __init__(self, tag: str) -> None:
        name = re.escape(tag.encode())
        self._tag = tag.encode()
        numbers = rb"%s \d{1,3} \d{1,12}(?: \d{0,10})?" % name
        self._header = re.compile(rb"<(%s (\d{1,3}) (\d{1,12})(?: (\d{0,10}))?)(\r?\n)" % name)
        self._mark = re.compile(rb"<%s\r?\n|%s>" % (numbers, numbers))
        self._unknown = b"<%s ???>" % self._tag
        self._buffer = bytearray()
        self._head: Header | None = None
        self._searched = 0  # up to here there is no trailer
        self._counted = 0  # up to here CR LF have been counted
        self._newlines = 0  # how many
        self.broken = 0
        """How often a frame was seen that was not whole."""
        self.lost: Header | None = None
        """The header of the last frame that was broken behind it."""
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
        # Before the buffer changes under the match.
        text, status, length, checksum, newline = found.groups()
        start, end = found.span()
        self._head = Header(
            int(status),
            int(length),
            int(checksum) if checksum else None,
            newline == b"\r\n",
            text + b">",
        )
        self._note(start)
        del self._buffer[: end - start]
        self._searched = self._counted = self._newlines = 0
        return True

    def _drop_debris(self) -> None:
        """Drop what holds no header; a trailer without one is a broken frame."""
        if self._unknown in self._buffer:
            self.unknown = True
        keep = max(0, len(self._buffer) - _LONGEST_MARK)
        for end in [found.end() for found in self._mark.finditer(self._buffer)]:
            self.broken += 1
            keep = max(keep, end)
        self._note(keep)

    def _find_trailer(self) -> tuple[Frame | None, bool]:
        """Return the frame, if it is whole, and whether to look for a header again."""
        assert self._head is not None
        head = self._head
        found = self._mark.search(self._buffer, max(0, self._searched - _LONGEST_MARK))
        if found is None:
            return None, self._overdue(head)
        mark, (start, end) = found.group(), found.span()
        raw = bytes(self._buffer[:start])
        payload = raw.replace(b"\r\n", b"\n") if head.mapped else raw
        if mark == head.trailer and head.fits(payload):
            del self._buffer[:end]
            self._head = None
            return Frame(head.status, payload), False
        # A header may begin another transmission; a trailer has ended this one.
        return None, self._restart(start if mark.startswith(b"<") else end)

    def _overdue(self, head: Header) -> bool:
        """Give the frame up if it should have ended by now; return whether to look again."""
        self._newlines += self._buffer.count(b"\r\n", max(0, self._counted - 1))
        self._counted = self._searched = len(self._buffer)
        received = len(self._buffer) - (self._newlines if head.mapped else 0)
        overdue = received >= head.length + len(head.trailer) + 2
        # What is left of the trailer may be the beginning of anything.
        return overdue and self._restart(max(0, len(self._buffer) - _LONGEST_MARK))

    def _restart(self, drop: int) -> bool:
        """Count the frame as broken and drop its beginning; return whether to look again."""
        assert self._head is not None
        self.lost = self._head
        self.broken += 1
        self._head = None
        self._note(drop)
        return True

    def _note(self, count: int) -> None:
        """Drop bytes that belong to no frame."""
        self._noise += self._buffer[max(0, count - _NOISE) : count]
        del self._noise[:-_NOISE]
        del self._buffer[:count]
