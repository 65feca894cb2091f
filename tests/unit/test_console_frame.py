"""Frames: with noise at any place, the parser returns the correct result or rejects the frame."""

from __future__ import annotations

import subprocess

import pytest

from harness.console.frame import FrameParser, cksum, new_tag

TAG = "7.B3-_xY"

NOISE = [
    pytest.param(b"7", id="digit"),
    pytest.param(b"0", id="zero"),
    pytest.param(b"\r", id="cr"),
    pytest.param(b"\n", id="lf"),
    pytest.param(b"\r\n", id="crlf"),
    pytest.param(b" ", id="blank"),
    pytest.param(b">", id="bracket"),
    pytest.param(b"\xff\x00\x1b[6n", id="bytes"),
    pytest.param(b"[   12.345678] usb 1-1: new device\r\n", id="printk"),
    pytest.param(b"<7.B3-_xZ 0 2\r\nhi7.B3-_xZ 0 2>", id="another tag's frame"),
]


def frame(payload: bytes, status: int = 0, *, tag: str = TAG, mapped: bool = True) -> bytes:
    """Return a frame as the guest's terminal sends it."""
    numbers = f"{tag} {status} {len(payload)}"
    if b"\r" in payload or len(payload) > 128:
        numbers += f" {cksum(payload)}"
    text = f"<{numbers}\n".encode() + payload + f"{numbers}>\n".encode()
    return text.replace(b"\n", b"\r\n") if mapped else text


PAYLOADS = [b"", b"ok\n", b"a\r\nb\n\r\n", b"\xff\x00\r", b"12\n345\n" * 4]


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_frame_is_parsed_however_it_is_split(payload: bytes, mapped: bool) -> None:
    stream = b"noise <" + frame(payload, 12, mapped=mapped) + b"more"
    for size in (1, 2, 3, 7, len(stream)):
        parser = FrameParser(TAG)
        results = [parser.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
        frames = [result for result in results if result is not None]
        assert [(result.status, result.payload) for result in frames] == [(12, payload)]
        assert parser.broken == 0


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("mapped", [True, False])
def test_noise_at_any_place_neither_forges_nor_loses_a_result(
    payload: bytes, noise: bytes, mapped: bool
) -> None:
    whole = frame(payload, 3, mapped=mapped)
    for at in range(len(whole) + 1):
        parser = FrameParser(TAG)
        first = parser.feed(whole[:at] + noise + whole[at:])
        # Correct at once, or rejected and correct when it is sent again.
        if first is None:
            first = parser.feed(whole)
        assert first is not None, at
        assert (first.status, first.payload) == (3, payload), at


@pytest.mark.parametrize("noise", NOISE)
def test_noise_inside_a_frame_is_noticed(noise: bytes) -> None:
    whole = frame(b"hello\n", 3)
    inner = whole.rindex(b">")
    for at in range(1, inner + 1):
        parser = FrameParser(TAG)
        if parser.feed(whole[:at] + noise + whole[at:]) is None:
            # A header that noise destroyed is noticed at the trailer.
            assert parser.broken or parser.tail, at


def test_noise_at_two_places_of_a_frame_is_rejected() -> None:
    whole = frame(b"hello\nworld\n", 3)
    for first in range(1, len(whole), 3):
        for second in range(first, len(whole) - 3, 3):
            parser = FrameParser(TAG)
            noisy = whole[:first] + b"1" + whole[first:second] + b"2\r\n" + whole[second:]
            result = parser.feed(noisy) or parser.feed(whole)
            assert result is not None
            assert (result.status, result.payload) == (3, b"hello\nworld\n")


def test_a_frame_of_another_tag_is_noise() -> None:
    parser = FrameParser(TAG)
    assert parser.feed(frame(b"forged\n", 0, tag="7.b3-_xY")) is None
    result = parser.feed(frame(b"true\n", 1))
    assert result is not None and result.payload == b"true\n"


def test_output_that_shows_the_tag_does_not_end_the_frame() -> None:
    payload = f"__n='{TAG}'\n<{TAG}\n{TAG} 0\n".encode()
    result = FrameParser(TAG).feed(frame(payload))
    assert result is not None and result.payload == payload


def test_a_broken_frame_leaves_its_header() -> None:
    parser = FrameParser(TAG)
    whole = frame(b"z" * 9000, 5)
    assert parser.feed(whole[:4000] + b"noise" + whole[4000:]) is None
    assert parser.lost is not None
    assert (parser.lost.status, parser.lost.length) == (5, 9000)


@pytest.mark.parametrize("data", [b"", b"hello\n", bytes(range(256)) * 5])
def test_the_checksum_equals_that_of_the_program_cksum(data: bytes) -> None:
    printed = subprocess.run(["cksum"], input=data, capture_output=True, check=True).stdout
    assert printed.split() == [str(cksum(data)).encode(), str(len(data)).encode()]


def test_the_answer_unknown_is_recognized() -> None:
    parser = FrameParser(TAG)
    parser.feed(f"<{TAG} ?".encode())
    assert not parser.unknown
    parser.feed(b"??>\r\n")
    assert parser.unknown


def test_endless_noise_takes_bounded_memory() -> None:
    parser = FrameParser(TAG)
    for _ in range(200):
        parser.feed(b"n" * 65536)
    assert len(parser._buffer) + len(parser._noise) < 10000


def test_tags_differ_and_are_safe_in_a_path() -> None:
    tags = {new_tag(12) for _ in range(1000)}
    assert len(tags) == 1000
    for tag in tags:
        number, _, secret = tag.partition(".")
        assert number == "12" and len(secret) == 6
        assert secret.replace("-", "").replace("_", "a").isalnum() or set(secret) <= {"-", "_"}
