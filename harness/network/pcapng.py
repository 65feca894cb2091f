"""Writes captures of a segment as pcapng files, which Wireshark and tshark read.

The format is that of draft-ietf-opsawg-pcapng, "PCAP Next Generation (pcapng) Capture File Format":
blocks (section 3.1), options (3.5), Section Header Block (4.1), Interface Description Block (4.2) and
Enhanced Packet Block (4.3). Each port is an interface. A frame from its machine is *inbound*, one to it
*outbound*, as the switch sees it. A frame that is dropped or corrupted has a comment that says so.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import BinaryIO, Final

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
ENHANCED_PACKET: Final = 6

_MAGIC: Final = 0x1A2B3C4D
_ETHERNET: Final = 1
"""LINKTYPE_ETHERNET."""

_END_OF_OPTIONS: Final = struct.pack("<HH", 0, 0)
_COMMENT: Final = 1  # opt_comment, 3.5.1
_IF_NAME: Final = 2  # 4.2
_IF_TSRESOL: Final = 9  # 4.2
_APPLICATION: Final = 4  # shb_userappl, 4.1
_FLAGS: Final = 2  # epb_flags, 4.3
_NANOSECONDS: Final = b"\x09"

_INBOUND: Final = 1  # epb_flags, 4.3.1: bits 0 and 1
_OUTBOUND: Final = 2


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


_PLAIN: Final = {
    inbound: _option(_FLAGS, struct.pack("<I", _INBOUND if inbound else _OUTBOUND))
    + _END_OF_OPTIONS
    for inbound in (True, False)
}
"""The options of a frame without a comment."""


class Capture:
    """The capture of a segment: at most two files, of which the second continues the first.

    When ``NAME.pcapng`` is half of the limit, it is renamed to ``NAME.old.pcapng``, over an older one.
    So the last frames are always there: at least half of the limit, at most all of it. ``mergecap``
    joins both.

    Args:
        path: The file, which ends in ``.pcapng``.
        limit: Bytes of both files.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._half = limit // 2
        self._interfaces: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._file: BinaryIO = self.path.open("wb", buffering=256 * 1024)
        self._interfaces.clear()
        body = struct.pack("<IHHq", _MAGIC, 1, 0, -1)  # of unknown length
        self._written = self._file.write(
            _block(SECTION, body + _option(_APPLICATION, b"Harness") + _END_OF_OPTIONS)
        )

    def _interface(self, port: str) -> int:
        number = self._interfaces.get(port)
        if number is None:
            number = self._interfaces[port] = len(self._interfaces)
            body = struct.pack("<HHI", _ETHERNET, 0, 0)  # no limit of a frame's length
            body += _option(_IF_NAME, port.encode()) + _option(_IF_TSRESOL, _NANOSECONDS)
            self._written += self._file.write(_block(INTERFACE, body + _END_OF_OPTIONS))
        return number

    def write(self, port: str, inbound: bool, frame: bytes, comment: str = "") -> None:
        """Write a frame.

        Args:
            port: The port.
            inbound: Whether its machine sent the frame.
            frame: The frame.
            comment: What happened to it.
        """
        if self._written >= self._half:
            self._file.close()
            self.path.replace(self.path.with_suffix(".old.pcapng"))
            self._begin()
        options = _PLAIN[inbound]
        if comment:
            options = _option(_COMMENT, comment.encode()) + options
        now = time.time_ns()
        length = len(frame)
        body = struct.pack(
            "<IIIII", self._interface(port), now >> 32, now & 0xFFFFFFFF, length, length
        )
        self._written += self._file.write(_block(ENHANCED_PACKET, body + _padded(frame) + options))

    def flush(self) -> None:
        """Write what is buffered to the file."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
