"""The emulated terminal: the screen, and the answers to queries."""

from __future__ import annotations

import random
import re
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from harness.console.query import QueryResponder
from harness.console.terminal import Terminal
from harness.errors import WaitTimeoutError
from tests.unit.test_console_support import SOON, GuestEnd, at_once, open_console


def test_the_screen_shows_the_interpreted_output(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"old\x1b[2J\x1b[3;5HInstall \x1b[7mYes\x1b[0m No\x1b[4;1Hgone\r\x1b[Kend")
        screen = console.wait_for_screen("Yes No", deadline=SOON)
        screen = console.wait_for_screen("end", deadline=SOON)
        assert screen.text == "\n\n    Install Yes No\nend"
        assert screen.cursor == (4, 4)
        assert screen.contains(re.compile(r"Yes\s+No")) and not screen.contains("old")
        assert str(console.screen) == screen.text


def test_a_wait_ends_when_the_text_appears(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        threading.Timer(0.05, guest.sendall, [b"GNU GRUB  version 2.12"]).start()
        assert "GRUB" in console.wait_for_screen(re.compile(r"version \d"), deadline=SOON).text


def test_a_text_that_appears_and_vanishes_in_one_chunk_is_seen(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\r\n" * 99 + b"MENU" + b"y" * 1600 + b"\r\n" * 99 + b"\x1b[2J\x1b[Hdone")
        assert "MENU" in console.wait_for_screen("MENU", deadline=SOON).text
        console.wait_for_screen("done", deadline=SOON)


def test_a_timeout_shows_the_screen(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\x1b[2J\x1b[HSomething else")
        console.wait_for_screen("else", deadline=SOON)
        with pytest.raises(WaitTimeoutError, match="'menu' on the screen") as raised:
            console.wait_for_screen("menu", deadline=at_once())
        assert "Something else" in raised.value.__notes__[0]


def test_a_screen_skips_old_output(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"line\r\n" * 1_000_000 + b"\x1b[2J\x1b[Hlast")
        console.expect("last", deadline=SOON)
        started = time.thread_time()
        assert console.screen.text == "last"
        # Six megabytes would take pyte many seconds.
        assert time.thread_time() - started < SOON / 4


def test_line_drawing_characters_are_shown() -> None:
    terminal = Terminal()
    terminal.feed(b"\x1b(0lqk\x1b(B x\r\n" + "│é│".encode())
    assert terminal.snapshot().lines[:2] == ("┌─┐ x", "│é│")


@pytest.mark.parametrize(
    "data",
    [
        b"\x1b[>4;2m",
        b"\x1b[?5n",
        b"\x1b[?1;2c",
        b"\x1b[=1c",
        b"\x1bP+q544e\x1b\\",
        b"\x1b_apc\x1b\\",
        b"\x1b[!p",
        b"\x1b[2 q",
        b"\x1b[38:2:1:2:3m",
        b"\x1b[" + b"9" * 5000 + b"C\x1b[H",
        b"\x1b[6n\x1b[18t",
        b"\x1b[?2026$p",
        b"\x1b[1;2;3;4;5r\x1b[?6;7X\x1b[H",
    ],
)
def test_sequences_that_pyte_mishandles_neither_raise_nor_show(data: bytes) -> None:
    for size in (1, len(data)):
        terminal = Terminal()
        for at in range(0, len(data), size):
            terminal.feed(data[at : at + size])
        terminal.feed(b"\x1b[2;1Hafter")
        assert terminal.snapshot().text.split() == ["after"]


# Parts of escape sequences, whose combinations are mostly invalid.
PIECES: Final = [
    *b"\x1b \x1b[ \x1b[ \x1b[ \x1b[? \x1b[> \x1b( \x1b# \x1b% \x1b] \x1bP \x1b\\ \x07 \x18".split(
        b" "
    ),
    *b"\n \r \t \xff \xc3 \x9b \xe2\x94\x82 : ; ; ; 0 1 2 5 7 25 80 999 1000000".split(b" "),
    *(bytes([final]) for final in range(ord("@"), ord("~"))),
]


def test_a_terminal_works_after_arbitrary_bytes() -> None:
    generator = random.Random(4)
    for _ in range(40):
        terminal = Terminal()
        for _ in range(10):
            terminal.feed(b"".join(generator.choices(PIECES, k=40)))
            row, column = terminal.snapshot().cursor
            assert 1 <= row <= 24 and 1 <= column <= 80
        # End any open sequence: CAN ends a control sequence, ST and BEL end a string; RIS resets.
        terminal.feed(b"\x18\x1b\\\x07")
        terminal.feed(b"\x1bcafter")
        assert terminal.snapshot().text == "after"


ANSWERS = [
    (b"\x1b[5n", b"\x1b[0n"),
    (b"\x1b[32766;32766H\x1b[6n", b"\x1b[24;80R"),
    (b"\x1b[2J\x1b[H\x1b[6n", b"\x1b[1;1R"),
    (b"\x1b[5;7Hab\r\ncde\x1b[6n", b"\x1b[6;4R"),
    (b"\x1b[H" + b"\r\n" * 50 + b"micro:~# \x1b[6n", b"\x1b[24;10R"),
    (b"\x1b[c", b"\x1b[?62;22c"),
    (b"\x1b[0c", b"\x1b[?62;22c"),
    (b"\x1b[>c", b"\x1b[>1;10;0c"),
    (b"\x1b[18t", b"\x1b[8;24;80t"),
    (b"\x1b]11;?\x07", b"\x1b]11;rgb:0000/0000/0000\x1b\\"),
    (b"\x1b]10;?\x1b\\", b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\"),
    (b"\x1bP+q6E616D65\x1b\\", b"\x1bP0+r\x1b\\"),
    # The queries of systemd at each getty.
    (b"\x1b[H\x1b[6n\x1b[32766;32766H\x1b[6n", b"\x1b[1;1R\x1b[24;80R"),
]


def _read(guest: GuestEnd, count: int) -> bytes:
    guest.settimeout(SOON)
    data = b""
    while len(data) < count:
        data += guest.recv(count - len(data))
    return data


@pytest.mark.parametrize(("question", "answer"), ANSWERS)
def test_queries_are_answered_without_any_wait(
    tmp_path: Path, question: bytes, answer: bytes
) -> None:
    with open_console(tmp_path) as (_, guest):
        guest.sendall(question)
        assert _read(guest, len(answer)) == answer


@pytest.mark.parametrize(("question", "answer"), ANSWERS)
def test_queries_are_answered_wherever_they_are_split(question: bytes, answer: bytes) -> None:
    for cut in range(len(question) + 1):
        replies: list[bytes] = []
        responder = QueryResponder(replies.append, columns=80, rows=24)
        responder.feed(question[:cut], b"", 0, 1.0)
        responder.feed(question[cut:], question[:cut], cut, 1.0)
        assert b"".join(replies) == answer, cut


def test_reports_are_not_answered(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        # A guest may echo the answers of the terminal, which must not cause more answers.
        guest.sendall(b"\x1b[0n\x1b[24;80R\x1b[?62;22c\x1b[>1;10;0c\x1b[8;24;80t\x1b[6nEND")
        assert _read(guest, 6).endswith(b"R")
        console.expect("END", deadline=SOON)
        guest.settimeout(0.05)
        with pytest.raises(TimeoutError):
            guest.recv(1)


def test_a_flood_of_queries_gets_few_answers() -> None:
    replies: list[bytes] = []
    responder = QueryResponder(replies.append, columns=80, rows=24)
    for number in range(50):
        responder.feed(b"\x1b[5n" * 1000, b"", number * 4000, 1.0 + number / 100)
    assert 0 < len(replies) < 200
    later = len(replies)
    responder.feed(b"\x1b[5n", b"", 10**6, 60.0)
    assert len(replies) == later + 1


def test_a_guest_that_queries_and_never_reads_does_not_block_the_drain(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        for _ in range(200):
            guest.sendall(b"\x1b[5n" * 5000)
        guest.sendall(b"END")
        console.expect_exact("END", deadline=SOON)


def test_line_wrap_stays_on_after_seabios() -> None:
    """SeaBIOS switches it off for its own screen, and leaves it so to the kernel (src/sercon.c)."""
    terminal = Terminal(columns=10, rows=3)
    terminal.feed(b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n0123456789abc")
    assert terminal.snapshot().lines == ("SeaBIOS", "0123456789", "abc")
