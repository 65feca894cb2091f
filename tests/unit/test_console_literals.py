"""The search for many byte strings in one pass."""

from __future__ import annotations

import random
import re

import pytest

from harness.console import literals
from harness.console.literals import Literals
from harness.console.watch import DEFAULT_WATCHERS, Scanner, watcher
from harness.errors import GuestError

TEXTS = [b"BUG: ", b"kernel BUG at ", b"emergency mode", b"\xff\xfe\x00x", b"(initramfs)"]


def matches(data: bytes, texts: list[bytes]) -> list[tuple[int, bytes]]:
    return [(at, texts[index]) for at, index in Literals(texts).find(data, 0, len(data))]


def test_each_text_is_found_at_its_place_in_bytes_of_any_kind() -> None:
    source = random.Random(1)
    for _ in range(200):
        data = bytearray()
        placed = []
        for _ in range(source.randrange(8)):
            data += source.randbytes(source.randrange(40)).replace(b"(", b"").replace(b"\xff", b"")
            text = source.choice(TEXTS)
            placed.append((len(data), text))
            data += text
        assert matches(bytes(data), TEXTS) == placed


def test_a_text_is_found_across_the_border_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(literals, "_PIECE", 64)
    for at in range(200):
        data = b"." * at + b"emergency mode" + b"." * 100
        assert matches(data, TEXTS) == [(at, b"emergency mode")]


def test_only_the_range_is_searched() -> None:
    data = b"BUG: BUG: BUG: "
    assert list(Literals([b"BUG: "]).find(data, 1, 14)) == [(5, 0)]


def test_a_match_tells_of_the_texts_that_it_may_hide() -> None:
    texts = [b"abcd", b"bc", b"cdef", b"xabc", b"nothing"]
    assert [Literals(texts).within(index) for index in range(5)] == [
        (0, 1, 2),
        (1, 2),
        (2,),
        (0, 1, 2, 3),
        (4,),
    ]


def test_watchers_whose_needles_overlap_all_see_the_line() -> None:
    watchers = [
        watcher("outer", "x", GuestError, ["abcdefgh"], "^abcdefgh", ""),
        watcher("inner", "x", GuestError, ["cdef"], "cdef", ""),
        watcher("behind", "x", GuestError, ["ghij"], "ghij$", ""),
    ]
    data = bytearray(Scanner.HEADROOM) + b"abcdefghij\n"
    sightings = Scanner(watchers).feed(data, Scanner.HEADROOM, len(data), 0)
    assert {sighting.watcher.name for sighting in sightings} == {"outer", "inner", "behind"}


def test_the_scanner_sees_what_the_patterns_match_line_by_line() -> None:
    lines = [
        b"[    1.000000] Kernel panic - not syncing: x",
        b"login: [    1.000000] BUG: y [    2.000000] Kernel panic - not syncing: z",
        b"BUG: a BUG: b",
        b"no BUG: here",
        b"You are in emergency mode, emergency mode",
        b"\xff\xfeBUG: \x80",
        b"",
        b"plain text",
    ]
    source = random.Random(2)
    for _ in range(200):
        chosen = [source.choice(lines) for _ in range(source.randrange(1, 12))]
        wanted = [w.name for line in chosen for w in DEFAULT_WATCHERS if w.pattern.search(line)]
        text = b"\r\n".join(chosen) + b"\r\n"
        scanner = Scanner(DEFAULT_WATCHERS)
        seen = []
        at = 0
        while at < len(text):
            size = source.choice([1, 3, 20, 400])
            data = bytearray(Scanner.HEADROOM) + text[at : at + size]
            seen += scanner.feed(data, Scanner.HEADROOM, len(data), at)
            at += size
        seen += scanner.flush()
        assert sorted(sighting.watcher.name for sighting in seen) == sorted(wanted), text


def test_the_words_of_a_sighting_are_what_its_pattern_matched() -> None:
    data = bytearray(Scanner.HEADROOM) + b"login: [   12.000001] Kernel panic - not syncing: x\n"
    (sighting,) = Scanner(DEFAULT_WATCHERS).feed(data, Scanner.HEADROOM, len(data), 0)
    assert re.fullmatch(rb"\[   12\.000001\] Kernel panic - not syncing", sighting.words)


def test_an_endless_line_is_reported_once_for_each_match() -> None:
    line = b"x" * 700 + b"[    1.000000] Kernel panic - not syncing: a" + b"y" * 5000
    data = bytearray(Scanner.HEADROOM) + line + b"[    2.000000] BUG: bad" + b"z" * 5000 + b"\n"
    sightings = Scanner(DEFAULT_WATCHERS).feed(data, Scanner.HEADROOM, len(data), 0)
    assert [(one.watcher.name, one.offset) for one in sightings] == [
        ("panic", 700),
        ("oops", len(line)),
    ]
