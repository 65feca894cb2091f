"""Matching by the rules of pexpect, on output of any size; sending text and keys."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from harness.errors import UnknownNameError, UsageError, WaitTimeoutError
from tests.unit.test_console_support import SOON, GuestEnd, at_once, open_console


def test_a_search_starts_after_the_last_match(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"one two one three")
        first = console.expect("one", deadline=SOON)
        second = console.expect("one", deadline=SOON)
        assert (first.before, second.before) == ("", " two ")
        assert (second.start, second.end) == (8, 11)
        with pytest.raises(WaitTimeoutError):
            console.expect("one", deadline=at_once())
        assert console.expect("th(?P<rest>r+)(ee)?(x)?", deadline=SOON).group("rest") == "r"


def test_the_earliest_match_wins_then_the_first_pattern(
    tmp_path: Path,
) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"abc")
        match = console.expect(["c", b"b", re.compile("b."), re.compile(b"bc")], deadline=SOON)
        assert (match.index, match.text) == (1, "b")


def test_groups_are_text_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall("größe 5\n".encode())
        match = console.expect(r"(gr\S+) (\d)(x)?", deadline=SOON)
        assert [match.group(group) for group in range(4)] == ["größe 5", "größe", "5", ""]
        with pytest.raises(IndexError):
            match.group(9)


def test_the_dot_matches_newlines_unless_a_compiled_pattern_says_otherwise(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"a\nb")
        console.expect("a.b", deadline=SOON)
        with pytest.raises(WaitTimeoutError):
            console.expect(re.compile("a.b"), deadline=at_once(), since=0)


def test_plain_texts_need_no_quoting(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"cost: $5.00 (five)")
        match = console.expect_exact(["(six)", "$5.00"], deadline=SOON)
        assert (match.index, match.text) == (1, "$5.00")
        with pytest.raises(IndexError):
            match.group(1)


def test_an_invalid_regular_expression_is_refused(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, _), pytest.raises(UsageError, match=r"\(unclosed"):
        console.expect("(unclosed", deadline=SOON)


def test_a_match_may_be_split_anywhere(tmp_path: Path) -> None:
    text = b"noise \xff needle in the hay"
    for cut in range(len(text)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        with open_console(folder) as (console, guest):
            guest.sendall(text[:cut])
            timer = threading.Timer(0.005, guest.sendall, [text[cut:]])
            timer.start()
            assert console.expect(r"needle\b.*hay", deadline=SOON).start == 8
            timer.join()


def test_a_lookbehind_sees_output_that_was_searched_before(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"x" * 40_000 + b"Last ")
        with pytest.raises(WaitTimeoutError):
            console.expect("(?<!Last )login", deadline=at_once())
        guest.sendall(b"login" + b"y" * 300_000 + b" login")
        assert console.expect("(?<!Last )login", deadline=SOON).start == 340_011


def test_a_search_that_starts_far_behind_sees_all_output(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"first" + b"." * 5_000_000 + b"second")
        assert console.expect("second", deadline=SOON, since=0).before.startswith(".")
        assert console.expect("first", deadline=SOON, since=0).start == 0
        assert len(console.expect("second", deadline=SOON, since=0).before) == 1 << 20


def test_a_long_match_needs_a_wide_window(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"<" + b"a" * 400_000 + b">")
        assert console.expect("<a*>", deadline=SOON, window=500_000).end == 400_002


def _read(guest: GuestEnd, count: int) -> bytes:
    guest.settimeout(SOON)
    data = b""
    while len(data) < count:
        data += guest.recv(count - len(data))
    return data


def test_send_line_ends_in_a_carriage_return(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        console.send_line("größe")
        console.send_line()
        console.send(b"\xff")
        assert _read(guest, 10) == "größe\r\r".encode() + b"\xff"


@pytest.mark.parametrize(
    ("keys", "data"),
    [
        (("Down", "Enter", "F2"), b"\x1b[B\r\x1bOQ"),
        (("up", "LEFT", "Right"), b"\x1b[A\x1b[D\x1b[C"),
        (("Home", "End", "PageUp", "PgDn"), b"\x1b[H\x1b[F\x1b[5~\x1b[6~"),
        (("Insert", "Del", "Tab", "Shift-Tab"), b"\x1b[2~\x1b[3~\t\x1b[Z"),
        (("Esc", "Backspace", "Space", "y", "é"), b"\x1b\x7f y\xc3\xa9"),
        (("F1", "F4", "F5", "F12"), b"\x1bOP\x1bOS\x1b[15~\x1b[24~"),
        (("Ctrl-C", "ctrl-]", "Ctrl-Space", "Ctrl-?"), b"\x03\x1d\x00\x7f"),
        (("Alt-x", "Alt-F1", "Alt-Enter"), b"\x1bx\x1b\x1bOP\x1b\r"),
    ],
)
def test_keys_send_the_bytes_of_a_terminal(
    tmp_path: Path, keys: tuple[str, ...], data: bytes
) -> None:
    with open_console(tmp_path) as (console, guest):
        console.press(*keys)
        assert _read(guest, len(data)) == data


def test_cursor_keys_follow_the_mode_of_the_guest(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\x1b[?1h\x1b=curses")
        console.wait_for_screen("curses", deadline=SOON)
        console.press("Down", "Home", "F5")
        assert _read(guest, 11) == b"\x1bOB\x1bOH\x1b[15~"


@pytest.mark.parametrize("key", ["Dwon", "", "Ctrl-", "Ctrl-F1", "Alt-", "F13", "ab"])
def test_an_unknown_key_is_refused_and_nothing_is_sent(tmp_path: Path, key: str) -> None:
    with open_console(tmp_path) as (console, guest):
        with pytest.raises(UnknownNameError, match="Down"):
            console.press("Enter", key)
        console.send("x")
        assert _read(guest, 1) == b"x"
