"""Logging in: from what getty and login print, and from what they print when they refuse."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from harness.console.frame import FrameParser
from harness.errors import LoginError, PanicError, WaitTimeoutError
from tests.unit.test_console_support import SOON, at_once, open_console


class Getty(threading.Thread):
    """Plays getty, login and a shell by a script: say something, then hear a line.

    Args:
        sock: The guest's end.
        play: What to say, before each line that is heard.
        prompt: The prompt of the shell that comes then.
    """

    def __init__(
        self, sock: socket.socket, play: list[bytes], prompt: bytes = b"~ # \x1b[6n"
    ) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.play = play
        self.prompt = prompt
        self.heard: list[bytes] = []
        self._left = b""
        self.start()

    def hear(self) -> bytes:
        self.sock.settimeout(SOON)
        while not (end := re.search(rb"[\r\n]", self._left)):
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._left += data
        line, self._left = self._left[: end.start()], self._left[end.end() :]
        return line

    def run(self) -> None:
        try:
            for text in self.play:
                self.sock.sendall(text)
                self.heard.append(self.hear())
            self.shell()
        except (EOFError, OSError):
            return

    def shell(self) -> None:
        """Be a shell that knows what a driver says."""
        self.sock.sendall(b"Last login: Tue Nov 21\r\nmotd: 100% of # $\r\n" + self.prompt)
        while True:
            line = self.hear()
            self.heard.append(line)
            probe = re.search(rb"echo 'h''(\w+)'", line)
            start = re.search(rb'0 0>.*" (\S+) \1;', line)
            driver = re.search(rb'then printf "<%s up>\\n" (\S+);', line)
            # The terminal echoes what is typed.
            self.sock.sendall(line + b"\r\n")
            if probe:
                self.sock.sendall(b"h" + probe[1] + b"\r\n" + self.prompt)
            for found in (start, driver):
                if found:
                    self.sock.sendall(b"<%s 0 0\r\n%s 0 0>\r\n" % (found[1], found[1]))


PROMPT = b"\r\n\r\nDebian GNU/Linux 13 skiff ttyS0\r\n\r\nskiff login: "


def test_a_login_with_a_password(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT, b"root\r\nPassword: "])
        console.login("root", "secret", deadline=SOON)
        assert console.logged_in
        assert getty.heard[:2] == [b"root", b"secret"]
        assert b"secret" not in (tmp_path / "serial.log").read_bytes()


def test_a_login_without_a_password(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT])
        console.login("root", deadline=SOON)
        assert getty.heard[0] == b"root"


def test_a_prompt_that_somebody_has_seen_is_there_still(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, [PROMPT])
        console.expect("login: ", SOON)
        console.login("root", deadline=SOON)


def test_a_kernel_message_behind_the_prompt(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT + b"[   12.345678] usb 1-1: new device\r\n"])
        console.login("root", deadline=SOON)
        assert getty.heard[0] == b"root"
        assert console.logged_in


def test_an_automatic_login(tmp_path: Path) -> None:
    for user in ("root", None):
        folder = tmp_path / str(user)
        folder.mkdir()
        with open_console(folder) as (console, guest):
            guest.sendall(b"\r\nskiff login: root (automatic login)\r\n")
            Getty(guest, [])
            console.login(user, deadline=SOON)
            assert console.logged_in


def test_a_prompt_that_was_printed_over_and_looked_past(tmp_path: Path) -> None:
    """A unit that ends behind agetty writes on the prompt's line; the test waits for its words."""
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT + b"installer: refused: no disk\r\nready\r\n", b"Password: "])
        console.expect("refused: ", SOON)
        console.expect("ready", SOON)
        console.login("root", "secret", deadline=SOON)
        assert getty.heard[:2] == [b"root", b"secret"]
        assert console.logged_in


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        ([PROMPT, b"Password: ", b"\r\nLogin incorrect\r\nskiff login: "], "Login incorrect"),
        ([PROMPT, b"\r\nLogin incorrect\r\n"], "Login incorrect"),
        # A getty whose `login` is missing starts again.
        ([PROMPT, b"\r\n" + PROMPT], "the login prompt is back"),
        ([PROMPT, b"Password: ", b"\r\n" + PROMPT], "the login prompt is back"),
        ([PROMPT, b"Password: ", b"\r\nNew password: "], "New password:"),
        ([PROMPT, b"\r\nThis account is currently not available.\r\n"], "not available"),
    ],
)
def test_a_refusal_says_why_at_once(tmp_path: Path, play: list[bytes], reason: str) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, play)
        with pytest.raises(LoginError, match=reason) as raised:
            console.login("root", "secret", deadline=SOON)
        assert "try:" in str(raised.value) and "serial.log" in str(raised.value)
        assert not console.logged_in


def test_a_password_that_was_not_given(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, [PROMPT, b"Password: "])
        with pytest.raises(LoginError, match="none was given"):
            console.login("root", deadline=SOON)


def test_a_panic_ends_it(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"[    1.000000] Kernel panic - not syncing: VFS\r\n")
        with pytest.raises(PanicError):
            console.login("root", deadline=SOON)


def test_silence_is_a_timeout(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\r\nLast login: ")
        with pytest.raises(WaitTimeoutError, match="a login prompt for root"):
            console.login("root", deadline=at_once())


def test_a_prompt_from_before_a_reset_is_none(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(PROMPT)
        console.expect("login: ", SOON, since=0)
        console.forget_login()
        with pytest.raises(WaitTimeoutError):
            console.login("root", deadline=at_once())


def test_a_shell_with_an_unusual_prompt(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT], prompt=b"skiff=]")
        console.login("root", prompt=r"=\]$", deadline=SOON)
        assert getty.heard[0] == b"root"


def test_the_played_shell_speaks_as_the_driver_does() -> None:
    found = FrameParser("0.abcdef").feed(b"<0.abcdef 0 0\r\n0.abcdef 0 0>\r\n")
    assert found is not None and found.status == 0
