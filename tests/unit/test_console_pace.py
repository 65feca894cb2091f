"""Paced typing, into a reader that has no flow control."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from harness.errors import WaitTimeoutError
from tests.unit.test_console_support import SOON, GuestEnd, at_once, open_console

TEXT = "echo abcdefghijklmnopqrstuvwxyz 0123456789, and so on"


class Loader(threading.Thread):
    """A boot loader that reads keys from a buffer of 15, which its firmware fills and overflows.

    Args:
        guest: The guest's end of the wire.
        echo: Turns a key into what the loader draws for it.

    Attributes:
        lines: The lines that were typed.
        most: The most keys that its buffer had to hold at once.
    """

    def __init__(self, guest: GuestEnd, echo: bytes = b"%s") -> None:
        super().__init__(daemon=True)
        self.guest = guest
        self.echo = echo
        self.lines: list[bytes] = []
        self.most = 0
        self.ended = threading.Event()
        guest.settimeout(SOON)
        self.start()

    def run(self) -> None:
        line = b""
        try:
            while data := self.guest.recv(65536):
                self.most = max(self.most, len(data))
                for key in data[:15]:
                    if key == 0x0D:
                        self.lines.append(line)
                        self.ended.set()
                        line = b""
                        continue
                    line += bytes([key])
                    self.guest.sendall(self.echo % bytes([key]))
        except OSError:
            return


@pytest.mark.parametrize("echo", [b"%s", b"\x1b[09;07H%s\x1b[0;37;40m", b"\x1b[s\x1b[m%s  \x1b[u"])
def test_a_long_line_arrives_whole(tmp_path: Path, echo: bytes) -> None:
    with open_console(tmp_path) as (console, guest):
        loader = Loader(guest, echo)
        console.send_line(TEXT, deadline=SOON, paced=True)
        assert loader.ended.wait(SOON)
        assert loader.lines == [TEXT.encode()]


def test_the_played_loader_loses_what_is_not_paced(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        loader = Loader(guest)
        console.send_line(TEXT, deadline=SOON)
        console.expect_exact(TEXT[:15], deadline=SOON)
        console.send_line("", deadline=SOON)
        assert loader.ended.wait(SOON)
        assert loader.lines[0] == TEXT[:15].encode()


def test_keys_without_an_echo_of_their_own_wait_for_any_output(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        loader = Loader(guest)
        console.send(b" " * 30 + b"x\x01\x02\r", deadline=SOON, paced=True)
        assert loader.ended.wait(SOON)
        assert loader.lines == [b" " * 30 + b"x\x01\x02"]
        # Two blanks go with the x, whose echo shows that they have arrived; all others go alone.
        assert loader.most == 3


def test_a_reader_that_does_not_echo_is_a_timeout_that_says_so(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        Loader(guest, b"*%.0s")
        with pytest.raises(WaitTimeoutError, match="the echo of 'secret'") as raised:
            console.send_line("secret", deadline=at_once(), paced=True)
        assert "does not echo" in raised.value.hint
