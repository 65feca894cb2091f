"""Logins: against the prompts and the refusals of getty and login."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.console import login
from harness.console.dialogue import Dialogue
from harness.console.frame import FrameParser
from harness.errors import LoginError, PanicError, WaitTimeoutError
from tests.unit.test_console_support import SOON, GuestEnd, at_once, open_console


class Getty(threading.Thread):
    """Plays getty, login and a shell: prints a text, then reads a line, and so on.

    Args:
        guest: The guest's end of the wire.
        texts: The texts; a line is read after each.
        prompt: The prompt of the shell that follows.
        noise: What is printed behind the first prompts of the shell, one for each.

    Attributes:
        lines: The lines that were read.
    """

    def __init__(
        self,
        guest: GuestEnd,
        texts: list[bytes],
        prompt: bytes = b"~ # \x1b[6n",
        noise: Sequence[bytes] = (),
    ) -> None:
        super().__init__(daemon=True)
        self.guest = guest
        self.texts = texts
        self.prompt = prompt
        self.noise = [*noise]
        self.lines: list[bytes] = []
        self._left = b""
        self.start()

    def read_line(self) -> bytes:
        self.guest.settimeout(SOON)
        while not (end := re.search(rb"[\r\n]", self._left)):
            data = self.guest.recv(65536)
            if not data:
                raise EOFError
            self._left += data
        line, self._left = self._left[: end.start()], self._left[end.end() :]
        return line

    def run(self) -> None:
        try:
            for text in self.texts:
                self.guest.sendall(text)
                self.lines.append(self.read_line())
            self.shell()
        except (EOFError, OSError):
            return

    def shell(self) -> None:
        """Play a shell that answers probes and starts drivers."""
        self.guest.sendall(b"Last login: Tue Nov 21\r\nmotd: 100% of # $\r\n" + self.next_prompt())
        while True:
            line = self.read_line()
            self.lines.append(line)
            probe = re.search(rb"echo 'h''(\w+)'", line)
            start = re.search(rb'0 0>.*" (\S+) \1;', line)
            driver = re.search(rb'then printf "<%s up>\\n" (\S+);', line)
            # The terminal echoes its input.
            self.guest.sendall(line + b"\r\n")
            if probe:
                self.guest.sendall(b"h" + probe[1] + b"\r\n")
            if not start and not driver:
                self.guest.sendall(self.next_prompt())
            for match in (start, driver):
                if match:
                    self.guest.sendall(b"<%s 0 0\r\n%s 0 0>\r\n" % (match[1], match[1]))

    def next_prompt(self) -> bytes:
        return self.prompt + (self.noise.pop(0) if self.noise else b"")


KERNEL = b"[   12.345678] vdb: detected capacity change\r\n"

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


def test_a_login_after_a_refused_one_waits_for_the_next_prompt(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        refused = b"\r\nLogin incorrect\r\n"
        getty = Getty(guest, [PROMPT, b"Password: ", refused + PROMPT, b"Password: "])
        with pytest.raises(LoginError, match="Login incorrect"):
            console.login("root", "wrong", deadline=SOON)
        console.login("root", "secret", deadline=SOON)
        assert getty.lines[:4] == [b"root", b"wrong", b"root", b"secret"]


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
        console.dialogue = Dialogue(shell_prompt=r"=\]$")
        console.login("root", deadline=SOON)
        assert getty.lines[0] == b"root"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the silence after which the guest is asked again."""
    monkeypatch.setattr(login, "_MOMENT", 0.05)
    monkeypatch.setattr(login, "_PATIENCE", 0.1)
    monkeypatch.setattr(login, "_WAKE", 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("user", ["root", None])
def test_a_kernel_message_behind_the_shell_prompt_does_not_hide_it(
    tmp_path: Path, user: str | None
) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, [PROMPT] if user else [], noise=[KERNEL, KERNEL])
        console.login(user, deadline=SOON)
        assert console.logged_in


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        # A broken login prompt: Enter has getty print it again, once or twice.
        ([b"skiff log" + KERNEL + b"in: ", PROMPT, b"Password: "], [b"", b"root", b"secret"]),
        (
            [b"skiff log" + KERNEL + b"in: ", 2 * PROMPT, b"Password: "],
            [b"", b"root", b"secret"],
        ),
        # A broken password prompt: Enter is a wrong password.
        (
            [
                PROMPT,
                b"Pass" + KERNEL + b"word: ",
                b"\r\nLogin incorrect\r\n" + PROMPT,
                b"Password: ",
            ],
            [b"root", b"", b"root", b"secret"],
        ),
    ],
)
def test_a_kernel_message_within_a_prompt_is_survived(
    tmp_path: Path, texts: list[bytes], lines: list[bytes]
) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, texts)
        console.login("root", "secret", deadline=SOON)
        typed = [line for line in getty.lines if b"echo" not in line and b"stty" not in line]
        assert typed[: len(texts)] == lines[: len(texts)]
        assert console.logged_in


COLOURED = [
    b"\x1b]0;root@box:~\x07\x1b[01;31mbox\x1b[01;34m ~ #\x1b[00m ",  # Gentoo
    b"box:~# \x1b[0m",
    b"\x1b[1m#\x1b[0m \x1b[32m \x1b[m",
    b"box \x1b[35m%\x1b[39m \x1b[K\x1b[?1h\x1b=\x1b[?2004h",  # zsh
    b"$\x1b(B\x1b[m ",  # tput sgr0
    b"> \x1b]133;B\x1b\\",  # a mark of shell integration
    b"#\t \x1b[6n",
]


@pytest.mark.parametrize("prompt", COLOURED)
def test_control_sequences_around_the_sign_do_not_hide_a_prompt(
    tmp_path: Path, prompt: bytes
) -> None:
    # No test waits for this long: the prompt itself has to be recognised.
    with open_console(tmp_path) as (console, guest), pytest.MonkeyPatch.context() as patch:
        patch.setattr(login, "_MOMENT", 10 * SOON)
        Getty(guest, [PROMPT], prompt=prompt)
        console.login("root", deadline=SOON)
        assert console.logged_in


@pytest.mark.parametrize("text", [b"50% done", b"#\r\n", b"a > b", b"# \x1b[3", b"#\x1b]0;x"])
def test_other_text_is_no_prompt(text: bytes) -> None:
    assert not Dialogue().shows_shell(text)


@pytest.mark.parametrize(
    "piece",
    [b"# ", b"#\x1b[m ", b"#\x1b]0;" + b"#" * 4000, b"# " + b" " * 4000, b"#\x1b[" + b"0;" * 2000],
)
def test_hostile_output_takes_linear_time(tmp_path: Path, piece: bytes) -> None:
    output = piece * (1024 * 1024 // len(piece))
    with open_console(tmp_path) as (console, guest):
        guest.sendall(output + b".\r\n")
        Getty(guest, [])
        console.login(None, deadline=2 * SOON)
        assert console.logged_in


GERMAN = Dialogue(
    login_prompt="Anmeldung: ",
    password_prompt="Kennwort: ",
    refusal="Anmeldung fehlgeschlagen",
    setting="`login` of image.yaml",
)


def test_a_getty_in_another_language(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        getty = Getty(guest, [b"skiff Anmeldung: ", b"Kennwort: "])
        console.dialogue = GERMAN
        console.login("root", "geheim", deadline=SOON)
        assert getty.lines[:2] == [b"root", b"geheim"]


def test_a_refusal_in_another_language(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        Getty(guest, [b"skiff Anmeldung: ", b"Kennwort: ", b"\r\nAnmeldung fehlgeschlagen\r\n"])
        console.dialogue = GERMAN
        with pytest.raises(LoginError, match="fehlgeschlagen"):
            console.login("root", "geheim", deadline=SOON)


@pytest.mark.parametrize("user", ["root", None])
def test_busybox_askfirst_gets_enter(tmp_path: Path, user: str | None) -> None:
    with open_console(tmp_path) as (console, guest):
        asks = b"\r\nPlease press Enter to activate this console. "
        getty = Getty(guest, [asks, PROMPT] if user else [asks])
        console.login(user, deadline=SOON)
        assert getty.lines[0] == b""
        assert console.logged_in


@pytest.mark.usefixtures("impatient")
def test_a_silent_console_gets_its_key(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        console.dialogue = Dialogue(wake="Space")

        def wake_up() -> None:
            guest.settimeout(SOON)
            keys.append(guest.recv(1))
            Getty(guest, [PROMPT])

        keys: list[bytes] = []
        threading.Thread(target=wake_up, daemon=True).start()
        console.login("root", deadline=SOON)
        assert keys == [b" "]


@pytest.mark.usefixtures("impatient")
def test_a_login_without_a_user_at_a_login_prompt_ends_at_once(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(PROMPT)
        with pytest.raises(LoginError, match="asks for a user") as raised:
            console.login(None, deadline=SOON)
        assert "`user` in console.dialogue" in raised.value.hint


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (b"", ["has printed nothing"]),
        (
            b"skiff Anmeldung: ",
            ["'skiff Anmeldung:'", "`login_prompt` in `login` of x.yaml", "`wake`"],
        ),
        (b"grub> ", ["no login prompt comes from there"]),
        (b"/ # ", ["'/ #'", "set `user: none` in `login` of x.yaml"]),
        (PROMPT, ["`password_prompt`", "`refusal`"]),
    ],
)
def test_a_login_that_times_out_says_what_it_saw_and_which_setting_helps(
    tmp_path: Path, output: bytes, says: list[str]
) -> None:
    with open_console(tmp_path) as (console, guest):
        console.dialogue = Dialogue(setting="`login` of x.yaml")
        guest.sendall(output)
        with pytest.raises(WaitTimeoutError) as raised:
            console.login("root", deadline=0.3)
        for words in says:
            assert words in raised.value.hint


def test_the_played_shell_answers_in_valid_frames() -> None:
    frame = FrameParser("0.abcdef").feed(b"<0.abcdef 0 0\r\n0.abcdef 0 0>\r\n")
    assert frame is not None and frame.status == 0
