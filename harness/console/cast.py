"""The asciicast recording of a console, to be replayed in a terminal or a browser.

Format: asciicast v2 (docs.asciinema.org/manual/asciicast/v2): a header line, then one JSON array an
event, ``[seconds, code, data]``; code ``o`` is output, ``m`` a marker.

The recording is for people, the raw log is the evidence. So a flood that nobody could watch is cut
in the recording: past a burst of 8 MiB, output above 8 MiB/s is left out, a marker says how many
bytes, and the end of what was left out is kept so that the screen is right afterwards. A serial
port never gets there.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from pathlib import Path
from typing import Final

COALESCE: Final = 0.02
"""Output that comes within this many seconds is one event."""

_EVENT: Final = 256 * 1024
_BURST: Final = 8 * 1024 * 1024
_RATE: Final = 8 * 1024 * 1024
_KEPT: Final = 16 * 1024


class CastWriter:
    """Writes one asciicast file; called by the drain thread alone.

    Args:
        path: The file; it is truncated.
        title: What the player shows as title.
        columns: Width in characters.
        rows: Height in characters.

    Raises:
        OSError: if the file cannot be made.
    """

    def __init__(self, path: Path, *, title: str, columns: int = 80, rows: int = 24) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._start = time.monotonic()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = bytearray()
        self._pending_since = 0.0
        self._credit = float(_BURST)
        self._credit_at = self._start
        self._left_out = 0
        self._left_out_end = b""
        self.error: OSError | None = None
        header = {
            "version": 2,
            "width": columns,
            "height": rows,
            "timestamp": int(time.time()),
            "title": title,
            "env": {"TERM": "xterm-256color", "SHELL": "/bin/sh"},
        }
        self._write(json.dumps(header) + "\n")

    def feed(self, data: memoryview, now: float) -> None:
        """Record output that came at ``now`` (monotonic seconds)."""
        self._credit = min(_BURST, self._credit + (now - self._credit_at) * _RATE)
        self._credit_at = now
        if len(data) > self._credit:
            if not self._left_out:
                self._emit()
            self._left_out += len(data)
            self._left_out_end = (self._left_out_end + bytes(data[-_KEPT:]))[-_KEPT:]
            return
        if self._left_out:
            self._mark(now)
        self._credit -= len(data)
        if not self._pending:
            self._pending_since = now
        self._pending += data
        if len(self._pending) >= _EVENT or now - self._pending_since >= COALESCE:
            self._emit()

    def due(self, now: float) -> float | None:
        """Return in how many seconds :meth:`flush` has something to write; ``None`` for never."""
        if self._pending:
            return max(0.0, self._pending_since + COALESCE - now)
        return COALESCE if self._left_out else None

    def flush(self, now: float) -> None:
        """Write what is pending."""
        self._emit()
        if self._left_out:
            self._mark(now)

    def close(self) -> None:
        """Write what is pending and close the file."""
        if self._fd >= 0:
            self.flush(time.monotonic())
            os.close(self._fd)
            self._fd = -1

    def _emit(self) -> None:
        if self._pending:
            text = self._decoder.decode(bytes(self._pending))
            self._pending.clear()
            self._event(self._pending_since, "o", text)

    def _mark(self, now: float) -> None:
        count = self._left_out - len(self._left_out_end)
        self._event(now, "m", f"{count} bytes left out; the raw log has them")
        self._decoder.reset()
        self._event(now, "o", self._decoder.decode(self._left_out_end))
        self._left_out = 0
        self._left_out_end = b""

    def _event(self, at: float, code: str, text: str) -> None:
        if text:
            self._write(json.dumps([round(at - self._start, 6), code, text]) + "\n")

    def _write(self, line: str) -> None:
        if self.error is not None:
            return
        data = memoryview(line.encode())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            # The recording is a convenience: it ends, the console goes on.
            self.error = error
