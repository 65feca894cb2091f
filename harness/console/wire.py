"""The line between a guest's console and its reader: a pipe for each direction.

The line keeps the guest's output while a busy host holds up the reader. QEMU writes the output of a
serial port byte by byte (``hw/char/serial.c``, ``serial_xmit``). A Unix socket holds 278 such bytes
(Linux 6.18: each takes a buffer of its own); a pipe joins them. While a socket is full, the transmitter
of the 16550 is busy. Firmware, boot loaders and the log of a kernel wait for it for some milliseconds,
then write on. This output is lost: lines of a boot, or the words of a panic.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final, Self

_SIZE: Final = 256 * 1024
"""Bytes that a pipe holds: more than a boot prints. Any user may ask for 1 MiB (``pipe(7)``)."""


class Wire:
    """One end of a line, with a socket's methods; a context manager that owns its descriptors.

    Args:
        incoming: The descriptor to read from.
        outgoing: The descriptor to write to.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return self.incoming

    def setblocking(self, flag: bool) -> None:
        """Let reads and writes wait, or raise ``BlockingIOError``."""
        os.set_blocking(self.incoming, flag)
        os.set_blocking(self.outgoing, flag)

    def recv(self, size: int) -> bytes:
        """Return the next bytes, ``size`` at most; none where the other end is closed."""
        return os.read(self.incoming, size)

    def recv_into(self, space: memoryview) -> int:
        """Read the next bytes into ``space``; return how many, 0 where the other end is closed."""
        return os.readv(self.incoming, [space])

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Write as many bytes as there is room for; return how many.

        Raises:
            BlockingIOError: There is no room.
            OSError: The other end is closed.
        """
        return os.write(self.outgoing, data)

    def sendall(self, data: bytes) -> None:
        """Write all bytes; for a line that blocks."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def close(self) -> None:
        """Close both descriptors; does nothing the second time."""
        descriptors = {self.incoming, self.outgoing} - {-1}
        # A late write must not reach a file that has got the number since.
        self.incoming = self.outgoing = -1
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pair() -> tuple[Wire, Wire]:
    """Return the two ends of a new line.

    Raises:
        OSError: This process has too many open files.
    """
    here_incoming, there_outgoing = os.pipe()
    there_incoming, here_outgoing = os.pipe()
    # Where this user's pipes take too much already, the size stays that of any pipe, 64 KiB.
    with contextlib.suppress(OSError):
        fcntl.fcntl(here_incoming, fcntl.F_SETPIPE_SZ, _SIZE)
    return Wire(here_incoming, here_outgoing), Wire(there_incoming, there_outgoing)
