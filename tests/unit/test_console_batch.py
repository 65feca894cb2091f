"""A flood is read in batches; other output is read at once."""

from __future__ import annotations

from harness.console.batch import Batching


def pauses(size: int, interval: float, count: int) -> list[float]:
    batching = Batching()
    return [batching.pause(size, 100.0 + number * interval) for number in range(count)]


def test_a_serial_line_is_read_at_once() -> None:
    # 1 MB/s, byte by byte and in the pieces of its FIFO.
    assert not any(pauses(1, 1e-6, 5000))
    assert not any(pauses(16, 16e-6, 50_000))


def test_short_output_is_read_at_once() -> None:
    assert not any(pauses(4096, 1e-4, 60))


def test_a_flood_is_read_in_batches_of_64_kib_and_of_2_ms_at_most() -> None:
    slow = pauses(4096, 4096 / 20e6, 1000)
    assert not any(slow[:60]) and set(slow[200:]) == {0.002}
    fast = pauses(65536, 65536 / 200e6, 1000)
    assert all(0.9 < pause * 200e6 / 65536 < 1.1 for pause in fast[50:])


def test_a_gap_ends_a_flood() -> None:
    batching = Batching()
    for number in range(500):
        batching.pause(4096, 100 + number * 1e-4)
    assert batching.pause(4096, 100.0499 + 1e-4) > 0
    assert batching.pause(4096, 101) == 0
