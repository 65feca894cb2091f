"""Guests for the tests of the console: a bare wire, and a real shell behind a terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import deadline
from harness.console import Console, wire
from harness.console.outbox import Outbox, Signal
from harness.console.wire import Wire
from harness.deadline import UNSCALED, Scale
from tests.programs import needs

SHELLS = [
    pytest.param(argv, id=name, marks=needs(name))
    for name, argv in {
        "dash": ["dash"],
        "bash": ["bash", "--norc", "-i"],
        "busybox": ["busybox", "sh", "-i"],
    }.items()
]

ON_ITS_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Makes standard input the controlling terminal, so that Ctrl-C works; then runs a program.

When the program ends, its terminal hangs up, and SIGHUP ends the program's children. A child of nohup(1)
ignores that signal, so its default is restored.
"""

SOON = 20.0
"""Seconds; the deadline, on a loaded host, of a wait that should end at once."""


class GuestEnd(Wire):
    """The guest's end of a wire, whose reads may have a timeout as a socket's do."""

    _timeout: float | None = None

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def recv(self, size: int) -> bytes:
        try:
            ready, _, _ = select.select([self], [], [], self._timeout)
        except ValueError as error:
            # The test has ended, and has closed the wire under the thread that plays the guest.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from error
        if not ready:
            raise TimeoutError("the console wrote nothing")
        return super().recv(size)

    def end_output(self) -> None:
        """Close the direction to the console."""
        os.close(self.outgoing)
        self.outgoing = -1


def line() -> tuple[Wire, GuestEnd]:
    """Return a console's and a guest's end of a new wire."""
    near, far = wire.pair()
    return near, GuestEnd(far.incoming, far.outgoing)


def at_once() -> deadline.Deadline:
    """Return a deadline 50 ms from now."""
    return UNSCALED.after(0.05)


@contextlib.contextmanager
def open_console(
    tmp_path: Path,
    *,
    on_eof: Callable[[], BaseException] | None = None,
    scale: Scale = UNSCALED,
) -> Iterator[tuple[Console, GuestEnd]]:
    """Yield a console, and the guest's end of its wire."""
    near, far = line()
    console = Console(
        near,
        log=tmp_path / "serial.log",
        cast=tmp_path / "serial.cast",
        name="guest",
        on_eof=on_eof,
        scale=scale,
    )
    with console, far:
        yield console, far


class ShellGuest:
    """A shell on a terminal that is joined to a wire.

    Attributes:
        wire: The console's end of the wire.
        tamper: Called with each chunk of output; returns the bytes to send instead.
    """

    def __init__(self, argv: list[str], home: Path) -> None:
        self.wire, self._far = line()
        self._master, slave = pty.openpty()
        self.tamper: Callable[[bytes], bytes] = lambda data: data
        environment = {
            "PATH": os.environ["PATH"],
            "PS1": "guest# ",
            "TERM": "vt220",
            "LANG": "C.UTF-8",
            "HOME": str(home),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", ON_ITS_TERMINAL, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=home,
        )
        os.close(slave)
        self._threads = [
            threading.Thread(target=self._from_guest, daemon=True),
            threading.Thread(target=self._to_guest, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def inject(self, noise: bytes) -> None:
        """Write to the line, as the kernel or a daemon does."""
        self._far.sendall(noise)

    def _from_guest(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._far.sendall(self.tamper(data))
        self._far.end_output()

    def _to_guest(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._far.recv(65536):
                while data:
                    data = data[os.write(self._master, data) :]

    def close(self) -> None:
        """End the shell."""
        self.process.kill()
        self.process.wait()
        self.wire.close()
        for thread in self._threads:
            thread.join(SOON)
        os.close(self._master)
        self._far.close()


@contextlib.contextmanager
def open_shell(argv: list[str], tmp_path: Path) -> Iterator[tuple[Console, ShellGuest]]:
    """Yield a console with a shell that is ready for commands."""
    guest = ShellGuest(argv, tmp_path)
    try:
        with Console(
            guest.wire, log=tmp_path / "serial.log", cast=tmp_path / "serial.cast", name="guest"
        ) as console:
            console.login(None, deadline=SOON)
            yield console, guest
            if console.logged_in:
                console.leave(deadline=SOON)
    finally:
        guest.close()
        tags = re.findall(rb"<(0\.\S{6}) 0 0\r\n", (tmp_path / "serial.log").read_bytes())
        for tag in tags:
            shutil.rmtree(results_of(tag.decode()), ignore_errors=True)


def results_of(tag: str) -> Path:
    """Return the directory of a driver's results."""
    return Path("/run" if os.geteuid() == 0 else "/dev/shm") / f".harness-{tag}"


def test_a_guest_whose_wire_is_closed_reads_an_error_of_the_system() -> None:
    near, far = line()
    near.close()
    far.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        far.recv(1)


def test_a_stale_cursor_report_is_dropped() -> None:
    here, there = wire.pair()
    here.setblocking(False)
    aborted, poke = Signal(), Signal()
    outbox = Outbox(here, aborted, poke)
    before = outbox.sent
    outbox.reply(b"\x1b[1;3R", before)
    assert outbox.send(b"typed\r", UNSCALED.after(10)) == 0
    outbox.reply(b"\x1b[2;3R", before)
    outbox.reply(b"\x1b[0n")
    assert there.recv(100) == b"\x1b[1;3Rtyped\r\x1b[0n"
    for resource in (here, there, aborted, poke):
        resource.close()
