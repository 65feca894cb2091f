"""Batches a flood: the drain thread lets output gather for a moment instead of reading each piece.

QEMU writes a virtio port's output in pieces of 4 KiB, and reading one costs more than its bytes do: a
log entry, a search, a wake of the waiting thread. So a network card's driver moderates its interrupts
in a flood, and the console does the same: it pauses for as long as 64 KiB take to arrive, and for 2 ms
at most. The wire holds more (:mod:`harness.console.wire`), so the guest does not wait. Output that is no
flood, a serial line's among it, is read at once.
"""

from __future__ import annotations

from typing import Final

_PAUSE: Final = 0.002
"""Seconds of a pause at most."""

_WANTED: Final = 64 * 1024
"""Bytes that a pause waits for."""

_RATE: Final = 4e6
"""Bytes a second from which on output is a flood; a 16550 passes 1e6 at most."""

_STEADY: Final = 256 * 1024
"""Bytes that arrive at this rate before it is a flood."""

_GAP: Final = 0.02
"""Seconds without output that end a flood."""

_FORGOTTEN: Final = 8 * 1024 * 1024
"""Bytes after which the past counts half."""


class Batching:
    """Measures the rate of the output; used by the drain thread alone."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._since = self._last = 0.0

    def pause(self, count: int, now: float) -> float:
        """Return for how many seconds to let output gather.

        Args:
            count: The bytes that arrived.
            now: When they arrived, in monotonic seconds.
        """
        if now - self._last > _GAP:
            self._bytes, self._since = 0.0, now
        self._last = now
        self._bytes += count
        elapsed = now - self._since
        if self._bytes < _STEADY or self._bytes < _RATE * elapsed:
            return 0.0
        pause = min(_PAUSE, _WANTED * elapsed / self._bytes)
        if self._bytes > _FORGOTTEN:
            self._bytes /= 2
            self._since = now - elapsed / 2
        return pause
