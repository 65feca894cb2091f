"""The bare tool: the descriptors of the console, read and written, and nothing else.

It keeps no log, watches for nothing, and has no timeouts: its parent process kills it. No console can
be faster. It includes Python's own cost, as every side does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from harness.console.wire import Wire

CHUNK: Final = 1024 * 1024
"""Bytes that a read may return; as many as Harness reads."""

_HEAD: Final = 256
"""Bytes of the buffer before the data of a read, for the end of the previous read; a mark is shorter."""


@dataclass(frozen=True, slots=True)
class Flood:
    """A command of the guest's shell that prints much, and the marks around its output.

    The command contains each mark in two parts, which the shell joins: the echo of the command contains
    no mark.

    Attributes:
        command: The command.
        begin: The mark before the output, newline included.
        end: The mark behind the output, newline included.
    """

    command: str
    begin: bytes
    end: bytes


def flood(path: str, times: int, tag: str, port: str = "") -> Flood:
    """Return the command that prints a file of the guest several times.

    Args:
        path: The file.
        times: How often.
        tag: A part of the marks that no other flood has.
        port: A device of the guest to print to; the terminal by default.
    """
    loop = f"i=0; while [ $i -lt {times} ]; do cat {path}; i=$((i+1)); done"
    newline = "\n" if port else "\r\n"
    return Flood(
        f"(echo BE''GIN-{tag}; {loop}; echo EN''D-{tag})" + (f" > {port}" if port else ""),
        f"BEGIN-{tag}{newline}".encode(),
        f"END-{tag}{newline}".encode(),
    )


class RawConsole:
    """A console on a wire, whose descriptors may be pipes, sockets or a pty.

    Args:
        wire: The wire; it becomes blocking.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        wire.setblocking(True)
        self._buffer = bytearray(_HEAD + CHUNK)
        self._space = memoryview(self._buffer)[_HEAD:]
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Write all of the data."""
        self._wire.sendall(data)

    def read(self) -> memoryview:
        """Return the data that is there, at least a byte; valid until the next read.

        Raises:
            EOFError: The guest's side is closed.
        """
        count = self._wire.recv_into(self._space)
        if not count:
            raise EOFError("the guest's side closed the console")
        return self._space[:count]

    def until(self, mark: bytes) -> bytes:
        """Return the output before a mark and consume both; for little output."""
        held = self._rest
        while (at := held.find(mark)) < 0:
            held += bytes(self.read())
        self._rest = held[at + len(mark) :]
        return held[:at]

    def until_match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Return the first match in the output; for little output."""
        held = self._rest
        while (match := pattern.search(held)) is None:
            held += bytes(self.read())
        self._rest = held[match.end() :]
        return match

    def count_until(self, mark: bytes) -> int:
        """Return how many bytes come before a mark; for much output, none of which is kept."""
        held = self._rest
        if (at := held.find(mark)) >= 0:
            self._rest = held[at + len(mark) :]
            return at
        keep = len(mark) - 1
        total = len(held)
        while True:
            # The tail goes before the next read, so that a mark that two reads cut apart is found.
            tail = held[-keep:]
            low = _HEAD - len(tail)
            self._buffer[low:_HEAD] = tail
            count = len(self.read())
            end = _HEAD + count
            if (at := self._buffer.find(mark, low, end)) >= 0:
                self._rest = bytes(self._buffer[at + len(mark) : end])
                return total + at - _HEAD
            total += count
            held = bytes(self._buffer[max(low, end - keep) : end])

    def login(self, user: str, password: str) -> None:
        """Log in at the first login prompt and wait for the shell's prompt."""
        self.until(b"login: ")
        self.write(user.encode() + b"\r")
        self.until(b"assword: ")
        self.write(password.encode() + b"\r")
        self.until(b"# ")

    def shell(self) -> RawShell:
        """Return a minimal shell, started at a prompt."""
        return RawShell(self)


class RawShell:
    """Runs commands over a bare console: a line goes in, output and status come back.

    A loop of the guest's shell evaluates lines, without echo and without a prompt. Noise on the line
    breaks it.

    Args:
        console: The console, at a shell's prompt.
    """

    _LOOP: Final = (
        'stty -echo; echo RE\'\'ADY; while read -r l && [ "$l" != Q ]; do eval "$l"; done;'
        " stty echo; echo DO''NE\r"
    )

    def __init__(self, console: RawConsole) -> None:
        self._console = console
        self._count = 0
        console.write(self._LOOP.encode())
        console.until(b"READY\r\n")

    def run(self, command: str) -> tuple[bytes, int]:
        """Return the output and the status of a command."""
        self._count += 1
        tag = b"t%d" % self._count
        self._console.write(b'%s; echo "%s $?"\n' % (command.encode(), tag))
        output = self._console.until(tag + b" ")
        return output, int(self._console.until(b"\r\n"))

    def close(self) -> None:
        """End the loop; the guest stands at its prompt again."""
        self._console.write(b"Q\n")
        self._console.until(b"DONE\r\n")
        self._console.until(b"# ")
