"""The bare tool: a descriptor of the console, read and written, and nothing else.

It keeps no log, watches for nothing, and takes its timeouts from whoever started the process. It
is what any console can at best be. Python's own cost is in it, as it is in every side.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 1024 * 1024
"""Bytes a read may return; as many as Harness' own."""

_HEAD: Final = 256
"""Bytes in front of what is read, for the end of what was read before; a mark is shorter."""


@dataclass(frozen=True, slots=True)
class Flood:
    """A command of the guest's shell that prints much, and the marks around what it prints.

    The shell joins what the command has apart, so that its echo is not taken for its output.

    Attributes:
        command: The command.
        begin: What stands before the output, newline included.
        end: What stands behind it.
    """

    command: str
    begin: bytes
    end: bytes


def flood(path: str, times: int, tag: str, port: str = "") -> Flood:
    """Return the command that prints a file of the guest some times.

    Args:
        path: The file.
        times: How often.
        tag: Makes the marks this flood's own.
        port: A device of the guest to print to; the terminal unless given.
    """
    loop = f"i=0; while [ $i -lt {times} ]; do cat {path}; i=$((i+1)); done"
    newline = "\n" if port else "\r\n"
    return Flood(
        f"(echo BE''GIN-{tag}; {loop}; echo EN''D-{tag})" + (f" > {port}" if port else ""),
        f"BEGIN-{tag}{newline}".encode(),
        f"END-{tag}{newline}".encode(),
    )


class RawConsole:
    """A console by its descriptor: a socket, or a pty.

    Args:
        fd: The descriptor; it is made to block.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, True)
        self._buffer = bytearray(_HEAD + CHUNK)
        self._space = memoryview(self._buffer)[_HEAD:]
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            data = data[os.write(self._fd, data) :]

    def read(self) -> memoryview:
        """Return what there is, at least a byte; valid until the next read.

        Raises:
            EOFError: if the guest's side is closed.
        """
        count = os.readv(self._fd, [self._space])
        if not count:
            raise EOFError("the guest's side closed the console")
        return self._space[:count]

    def until(self, mark: bytes) -> bytes:
        """Return the output up to a mark, which is taken off; meant for little output."""
        held = self._rest
        while (at := held.find(mark)) < 0:
            held += bytes(self.read())
        self._rest = held[at + len(mark) :]
        return held[:at]

    def until_match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Return the first match in the output; meant for little output."""
        held = self._rest
        while (found := pattern.search(held)) is None:
            held += bytes(self.read())
        self._rest = held[found.end() :]
        return found

    def count_until(self, mark: bytes) -> int:
        """Return how many bytes come before a mark; for much output: it keeps none of it."""
        held = self._rest
        if (at := held.find(mark)) >= 0:
            self._rest = held[at + len(mark) :]
            return at
        keep = len(mark) - 1
        total = len(held)
        while True:
            # In front of what is read next, so that a mark that two reads cut apart is found.
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
        """Log in at the first login prompt and wait for the shell's."""
        self.until(b"login: ")
        self.write(user.encode() + b"\r")
        self.until(b"assword: ")
        self.write(password.encode() + b"\r")
        self.until(b"# ")

    def shell(self) -> RawShell:
        """Return the least that runs commands, started at a prompt."""
        return RawShell(self)


class RawShell:
    """Commands over a bare console: one line there, output and status back.

    A loop of the guest's shell that evaluates lines, without echo and without a prompt. Nothing
    protects it from noise.

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
        """Give the prompt back."""
        self._console.write(b"Q\n")
        self._console.until(b"DONE\r\n")
        self._console.until(b"# ")
