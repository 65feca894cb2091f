"""Connects a guest to a service on the host: the program behind a guest forward.

QEMU runs ``guest_forward.py HOST PORT`` once per connection (``guestfwd=...-cmd:``), with the
guest's connection as standard input, output and error, a single socket (libslirp, ``fork_exec`` in
``misc.c``). It is a separate program that imports nothing of Harness, so that it starts in
milliseconds.

It exits when both directions have ended. However QEMU dies, the guest's side ends then, and with
it the connection to the service: nothing is left to clean up.
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
"""Seconds to connect to the service, which already listens on this host."""


def command() -> tuple[str, ...]:
    """Return the command of this program, to which the host and the port are appended."""
    # -I -S: the environment does not influence the imports, and the program starts in 30 ms.
    return (sys.executable, "-I", "-S", __file__)


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy bytes until ``source`` ends, then shut down ``sink`` for writing: half-close passes on."""
    buffer = memoryview(bytearray(CHUNK))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
        sink.shutdown(socket.SHUT_WR)
        return
    # One of the two connections is broken, so the other direction is of no use any more.
    for connection in (source, sink):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def main() -> int:
    """Connect standard input to a service and return the exit status."""
    guest = socket.socket(fileno=os.dup(0))
    # A message of this program must not reach the guest as if the service had sent it.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        service = socket.create_connection((sys.argv[1], int(sys.argv[2])), CONNECT)
    except OSError:
        return 1  # The guest's connection closes without a byte.
    service.settimeout(None)
    for connection in (guest, service):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    upload = threading.Thread(target=pump, args=(guest, service))
    upload.start()
    pump(service, guest)
    upload.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
