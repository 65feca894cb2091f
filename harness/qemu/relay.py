"""Joins one connection of a guest to a service on the host; run by QEMU, once a connection.

``relay.py HOST PORT``: QEMU's ``guestfwd=...-cmd:`` starts it with the guest's connection as its
standard input, output and error, a single socket (libslirp, ``fork_exec`` in ``misc.c``). It is a
program of its own and imports nothing of Harness: it starts in milliseconds.

It ends when both directions have ended. When QEMU dies, however it dies, the guest's side ends and
the service's with it, so that nothing has to clean up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from typing import Final

CHUNK: Final = 256 * 1024
"""Bytes moved at a time."""

CONNECT: Final = 10.0
"""Seconds for the connection to the service, which is on this host and listens already."""


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Move bytes until ``source`` ends, and say so to ``sink``: a half-closed connection stays so."""
    buffer = memoryview(bytearray(CHUNK))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
        sink.shutdown(socket.SHUT_WR)
        return
    # One of the two is broken: nothing that the other direction moves is of use to anybody.
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def main() -> int:
    """Join standard input to a service and return the exit status."""
    guest = socket.socket(fileno=os.dup(0))
    # Whatever goes wrong from here must not be told to the guest as if the service had said it.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        service = socket.create_connection((sys.argv[1], int(sys.argv[2])), CONNECT)
    except OSError:
        return 1  # The guest's connection closes without a byte.
    service.settimeout(None)
    for each in (guest, service):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    there = threading.Thread(target=pump, args=(guest, service))
    there.start()
    pump(service, guest)
    there.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
