r"""Frames: the results of commands, on a line that other programs write to as well.

The kernel prints at any moment, daemons write to the console, and a guest may be hostile. So each
result is sent in a frame, with a tag that is drawn for one command::

    <TAG STATUS LENGTH [CRC]\n  PAYLOAD  TAG STATUS LENGTH [CRC]>

``STATUS`` is the exit status, or more than 255 where the output is lost
(:mod:`harness.console.driver`), ``LENGTH`` the length of the payload in bytes, ``CRC`` its checksum
by ``cksum``. Noise only adds bytes. Wherever it adds them, header and trailer differ or the length
is wrong, and the parser rejects the frame; the console then requests the result again. Output
cannot forge a frame, because no program knows the tag. For the same reason, a header or a trailer
inside a frame proves that the frame is broken.

The guest's terminal may turn each LF into CR LF. The newline of the header shows whether it does,
and the parser undoes it in the payload. A CR of the payload followed by an LF of noise would then
look like one newline, so a payload that contains a CR carries a checksum.
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
    """Return a tag: a number, a dot, and 36 random bits as six characters.

    The guest uses the number in file names, which its programs can see. No program can guess the
    random bits while a command runs.
    """
    return f"{number}.{secrets.token_urlsafe(5)[:6]}"


_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def cksum(data: bytes) -> int:
    """Return the checksum that POSIX ``cksum`` prints.

    It is the CRC of zlib with the bits of each byte reversed and the initial value 0, over the
    data and then its length (POSIX.1-2017, ``cksum``).
    """
    length = len(data)
    tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
    reflected = zlib.crc32((data + tail).translate(_REVERSED), 0xFFFFFFFF)
    return int(f"{reflected:032b}"[::-1], 2)


@dataclass(frozen=True, slots=True)
class Frame:
    """A complete frame.

    Attributes:
        status: The exit status of the command.
        payload: The bytes between header and trailer.
    """

    status: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a frame.

    Attributes:
        status: The exit status of the command.
        length: The length of the payload in bytes.
        checksum: The checksum of the payload; ``None`` if the header has none.
        mapped: Whether the terminal turns LF into CR LF.
        trailer: The bytes that end the frame.
    """

    status: int
    length: int
    checksum: int | None
    mapped: bool
    trailer: bytes

    def fits(self, payload: bytes) -> bool:
        """Return whether a payload has this length and checksum."""
        if len(payload) != self.length:
            return False
        return self.checksum is None or self.checksum == cksum(payload)


class FrameParser:
    """Finds the frame of one tag in a stream of chunks.

    The time is linear in the output, and the memory is bounded by the length of the frame.

    Args:
        tag: The tag.

    Attributes:
        broken: The number of broken frames so far.
        lost: The header of the last broken frame whose header was intact.
        unknown: Whether the guest has answered that it has no result for this tag.
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
        self._searched = 0  # the buffer has no trailer before this index
        self._counted = 0  # each CR LF before this index is counted in _newlines
        self._newlines = 0
        self._noise = bytearray()
        self.broken = 0
        self.lost: Header | None = None
        self.unknown = False

    @property
    def length(self) -> int | None:
        """The length of the payload in bytes inside a frame; ``None`` outside."""
        return self._head.length if self._head else None

    @property
    def rest(self) -> int:
        """The number of bytes behind the frame that :meth:`feed` returned."""
        return len(self._buffer)

    @property
    def tail(self) -> bytes:
        """The last bytes outside a frame; empty inside one."""
        return b"" if self._head else bytes(self._noise[-512:] + self._buffer)

    def feed(self, data: bytes) -> Frame | None:
        """Parse a chunk of output; return the frame once it is complete."""
        self._buffer += data
        while True:
            if self._head is None and not self._find_header():
                return None
            frame, again = self._find_trailer()
            if frame is not None or not again:
                return frame

    def _find_header(self) -> bool:
        match = self._header.search(self._buffer)
        if match is None:
            self._drop_debris()
            return False
        # Read the groups before the buffer changes: the match refers to it.
        text, status, length, checksum, newline = match.groups()
        start, end = match.span()
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
        """Drop bytes that contain no header; a trailer without a header is a broken frame."""
        if self._unknown in self._buffer:
            self.unknown = True
        keep = max(0, len(self._buffer) - _LONGEST_MARK)
        for end in [mark.end() for mark in self._mark.finditer(self._buffer)]:
            self.broken += 1
            keep = max(keep, end)
        self._note(keep)

    def _find_trailer(self) -> tuple[Frame | None, bool]:
        """Return the frame, if it is complete, and whether to look for a header again."""
        assert self._head is not None
        head = self._head
        match = self._mark.search(self._buffer, max(0, self._searched - _LONGEST_MARK))
        if match is None:
            return None, self._overdue(head)
        mark, (start, end) = match.group(), match.span()
        raw = bytes(self._buffer[:start])
        payload = raw.replace(b"\r\n", b"\n") if head.mapped else raw
        if mark == head.trailer and head.fits(payload):
            del self._buffer[:end]
            self._head = None
            return Frame(head.status, payload), False
        # A header may start the next transmission, so keep it. A trailer ends this one.
        return None, self._restart(start if mark.startswith(b"<") else end)

    def _overdue(self, head: Header) -> bool:
        """Reject the frame if its trailer is overdue; return whether to look again."""
        self._newlines += self._buffer.count(b"\r\n", max(0, self._counted - 1))
        self._counted = self._searched = len(self._buffer)
        received = len(self._buffer) - (self._newlines if head.mapped else 0)
        overdue = received >= head.length + len(head.trailer) + 2
        # The last bytes may be the start of a header.
        return overdue and self._restart(max(0, len(self._buffer) - _LONGEST_MARK))

    def _restart(self, drop: int) -> bool:
        """Count the frame as broken and drop its first bytes; return ``True``: look again."""
        assert self._head is not None
        self.lost = self._head
        self.broken += 1
        self._head = None
        self._note(drop)
        return True

    def _note(self, count: int) -> None:
        """Drop bytes that belong to no frame; keep their end for :attr:`tail`."""
        self._noise += self._buffer[max(0, count - _NOISE) : count]
        del self._noise[:-_NOISE]
        del self._buffer[:count]
