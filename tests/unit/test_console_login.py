"""Logins: against the prompts and the refusals of getty and login."""

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
    """Plays getty, login and a shell: prints a text, then reads a line, and so on.

    Args:
        sock: The guest's end of the socket.
        texts: The texts; a line is read after each.
        prompt: The prompt of the shell that follows.

    Attributes:
        lines: The lines that were read.
    """

    def __init__(
        self, sock: socket.socket, texts: list[bytes], prompt: bytes = b"~ # \x1b[6n"
    ) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.texts = texts
        self.prompt = prompt
        self.lines: list[bytes] = []
        self._left = b""
        self.start()

    def read_line(self) -> bytes:
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
            for text in self.texts:
                self.sock.sendall(text)
                self.lines.append(self.read_line())
            self.shell()
        except (EOFError, OSError):
            return

    def shell(self) -> None:
        """Play a shell that answers probes and starts drivers."""
        self.sock.sendall(b"Last login: Tue Nov 21\r\nmotd: 100% of # $\r\n" + self.prompt)
        while True:
            line = self.read_line()
            self.lines.append(line)
            probe = re.search(rb"echo 'h''(\w+)'", line)
            start = re.search(rb'0 0>.*" (\S+) \1;', line)
            driver = re.search(rb'then printf "<%s up>\\n" (\S+);', line)
            # The terminal echoes its input.
            self.sock.sendall(line + b"\r\n")
            if probe:
                self.sock.sendall(b"h" + probe[1] + b"\r\n" + self.prompt)
            for match in (start, driver):
                if match:
                    self.sock.sendall(b"<%s 0 0\r\n%s 0 0>\r\n" % (match[1], match[1]))


PROMPT = b"\r\n\r\nDebian GNU/Linux 13 skiff ttyS0\r\n\r\nskiff login: "


def test_a_login_with_a_password(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT, b"root\r\nPassword: "])
        console.login("root", "secret", deadline=SOON)
        assert console.logged_in
        assert getty.lines[:2] == [b"root", b"secret"]
        assert b"secret" not in (tmp_path / "serial.log").read_bytes()


def test_a_login_without_a_password(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT])
        console.login("root", deadline=SOON)
        assert getty.lines[0] == b"root"


def test_a_prompt_that_was_matched_before_is_used(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, [PROMPT])
        console.expect("login: ", deadline=SOON)
        console.login("root", deadline=SOON)


def test_a_kernel_message_after_the_prompt_does_not_hide_it(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT + b"[   12.345678] usb 1-1: new device\r\n"])
        console.login("root", deadline=SOON)
        assert getty.lines[0] == b"root"
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


def test_a_prompt_that_a_program_wrote_on_is_used(tmp_path: Path) -> None:
    """A unit that ends after agetty has started writes on the line of the prompt."""
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT + b"installer: refused: no disk\r\nready\r\n", b"Password: "])
        console.expect("refused: ", deadline=SOON)
        console.expect("ready", deadline=SOON)
        console.login("root", "secret", deadline=SOON)
        assert getty.lines[:2] == [b"root", b"secret"]
        assert console.logged_in


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([PROMPT, b"Password: ", b"\r\nLogin incorrect\r\nskiff login: "], "Login incorrect"),
        ([PROMPT, b"\r\nLogin incorrect\r\n"], "Login incorrect"),
        # Without the program `login`, getty restarts.
        ([PROMPT, b"\r\n" + PROMPT], "the login prompt is back"),
        ([PROMPT, b"Password: ", b"\r\n" + PROMPT], "the login prompt is back"),
        ([PROMPT, b"Password: ", b"\r\nNew password: "], "New password:"),
        ([PROMPT, b"\r\nThis account is currently not available.\r\n"], "not available"),
    ],
)
def test_a_refusal_ends_the_login_at_once_with_its_reason(
    tmp_path: Path, texts: list[bytes], reason: str
) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, texts)
        with pytest.raises(LoginError, match=reason) as raised:
            console.login("root", "secret", deadline=SOON)
        assert "try:" in str(raised.value) and "serial.log" in str(raised.value)
        assert not console.logged_in


def test_a_missing_password_is_an_error(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, [PROMPT, b"Password: "])
        with pytest.raises(LoginError, match="the login has none"):
            console.login("root", deadline=SOON)


def test_a_panic_ends_the_login(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"[    1.000000] Kernel panic - not syncing: VFS\r\n")
        with pytest.raises(PanicError):
            console.login("root", deadline=SOON)


def test_silence_is_a_timeout(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\r\nLast login: ")
        with pytest.raises(WaitTimeoutError, match="a login prompt for root"):
            console.login("root", deadline=at_once())


def test_a_prompt_from_before_a_reset_does_not_count(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(PROMPT)
        console.expect("login: ", deadline=SOON, since=0)
        console.forget_login()
        with pytest.raises(WaitTimeoutError):
            console.login("root", deadline=at_once())


def test_a_shell_with_an_unusual_prompt(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [PROMPT], prompt=b"skiff=]")
        console.login("root", prompt=r"=\]$", deadline=SOON)
        assert getty.lines[0] == b"root"


def test_the_played_shell_answers_in_valid_frames() -> None:
    frame = FrameParser("0.abcdef").feed(b"<0.abcdef 0 0\r\n0.abcdef 0 0>\r\n")
    assert frame is not None and frame.status == 0
