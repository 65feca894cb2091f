"""The keys that are pressed for a name or a character."""

from __future__ import annotations

import string

import pytest

from harness.console import KEY_NAMES
from harness.errors import UnknownNameError, UsageError
from harness.machine.keyboard import chord


@pytest.mark.parametrize(
    ("key", "codes"),
    [
        ("a", ("a",)),
        ("A", ("shift", "a")),
        ("7", ("7",)),
        ("&", ("shift", "7")),
        ("|", ("shift", "backslash")),
        ("~", ("shift", "grave_accent")),
        ("?", ("shift", "slash")),
        ("\n", ("ret",)),
        ("Return", ("ret",)),
        ("esc", ("esc",)),
        ("PgDn", ("pgdn",)),
        ("F12", ("f12",)),
        ("BackTab", ("shift", "tab")),
        ("Shift-Tab", ("shift", "tab")),
        ("Ctrl-C", ("ctrl", "c")),
        ("ctrl-space", ("ctrl", "spc")),
        ("Alt-x", ("alt", "x")),
        ("Alt-X", ("alt", "shift", "x")),
        ("Alt-F2", ("alt", "f2")),
        ("Shift-a", ("shift", "a")),
        ("Shift-A", ("shift", "a")),
        ("Ctrl--", ("ctrl", "minus")),
        ("Ctrl-Alt-Delete", ("ctrl", "alt", "delete")),
    ],
)
def test_a_key_is_pressed_as_a_person_presses_it(key: str, codes: tuple[str, ...]) -> None:
    assert chord(key) == codes


def test_every_key_of_the_console_exists() -> None:
    for name in KEY_NAMES:
        assert chord(name)


def test_every_printable_character_has_a_key_of_its_own() -> None:
    characters = string.printable.replace("\x0b", "").replace("\x0c", "").replace("\r", "")
    assert len({chord(character) for character in characters}) == len(characters)


@pytest.mark.parametrize("key", ["Dwon", "Ctrl-", "Hyper-x", "Ctrl-Dwon", ""])
def test_an_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(UnknownNameError, match="known: "):
        chord(key)


def test_a_character_without_a_key_is_refused() -> None:
    with pytest.raises(UsageError, match="'ä'"):
        chord("ä")
