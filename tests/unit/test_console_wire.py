"""The line between a guest's console and its reader."""

from __future__ import annotations

import os

import pytest

from harness.console.wire import pair


def test_a_line_that_nobody_reads_keeps_what_comes_byte_by_byte() -> None:
    console, guest = pair()
    with console, guest:
        guest.setblocking(False)
        for _ in range(60_000):
            assert guest.send(b"x") == 1
        assert len(console.recv(1 << 20)) == 60_000


def test_both_directions_are_apart_and_end_with_their_writer() -> None:
    console, guest = pair()
    with console, guest:
        console.sendall(b"typed")
        guest.sendall(b"said")
        space = memoryview(bytearray(10))
        assert bytes(space[: console.recv_into(space)]) == b"said"
        assert guest.recv(10) == b"typed"
        guest.close()
        assert console.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            console.send(b"x")


def test_a_line_that_was_closed_writes_to_no_file_that_came_after_it() -> None:
    console, guest = pair()
    numbers = {console.incoming, console.outgoing}
    console.close()
    console.close()
    reader, writer = os.pipe()
    assert {reader, writer} == numbers
    with pytest.raises(OSError, match="Bad file descriptor"):
        console.send(b"x")
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    for descriptor in (reader, writer):
        os.close(descriptor)
    guest.close()
