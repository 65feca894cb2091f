"""The asciicast recording of a console, for replay in a terminal or a browser.

Format: asciicast v2 (docs.asciinema.org/manual/asciicast/v2): a header line, then one JSON array
per event, ``[seconds, code, data]``. Code ``o`` is output, ``m`` is a marker.

The recording is for people; the raw log is the evidence. So the recording drops output that is too
fast to watch: after a burst of 8 MiB, all but four glimpses of 256 KiB a second. A marker counts the
dropped bytes. Their last 16 KiB are recorded, so that the screen is correct afterwards. A serial port
is never that fast.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from pathlib import Path
from typing import Final

COALESCE: Final = 0.02
"""Seconds. Output that arrives within this time becomes one event."""

_EVENT: Final = 256 * 1024
_BURST: Final = 8 * 1024 * 1024
_RATE: Final = 1024 * 1024
_GLIMPSE: Final = _RATE // 4
_KEPT: Final = 16 * 1024


class CastWriter:
    """Writes one asciicast file; used by the drain thread alone.

    Args:
        path: The file, which is truncated.
        title: The title that the player shows.
        columns: The width of the terminal in characters.
        rows: The height of the terminal in characters.

    Attributes:
        error: The error that ended the recording early; ``None`` if there was none.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path, *, title: str, columns: int = 80, rows: int = 24) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._start = time.monotonic()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = bytearray()
        self._pending_since = 0.0
        self._credit = float(_BURST)
        self._credit_at = self._start
        self._dropped = 0
        self._dropped_end = b""
        self.error: OSError | None = None
        header = {
            "version": 2,
            "width": columns,
            "height": rows,
            "timestamp": int(time.time()),
            # The format has whole seconds; readers ignore keys that they do not know.
            "began": round(time.time(), 3),
            "title": title,
            "env": {"TERM": "xterm-256color", "SHELL": "/bin/sh"},
        }
        self._write(json.dumps(header) + "\n")

    def feed(self, data: memoryview, now: float) -> None:
        """Record output that arrived at ``now``, in monotonic seconds."""
        self._credit = min(_BURST, self._credit + (now - self._credit_at) * _RATE)
        self._credit_at = now
        # A marker and the end of what was dropped cost more than a small piece: resume for a glimpse.
        if len(data) > self._credit or (self._dropped and self._credit < _GLIMPSE):
            if not self._dropped:
                self._emit()
            self._dropped += len(data)
            self._dropped_end = (self._dropped_end + bytes(data[-_KEPT:]))[-_KEPT:]
            return
        if self._dropped:
            self._mark(now)
        self._credit -= len(data)
        if not self._pending:
            self._pending_since = now
        self._pending += data
        if len(self._pending) >= _EVENT or now - self._pending_since >= COALESCE:
            self._emit()

    def due(self, now: float) -> float | None:
        """Return the seconds until :meth:`flush` must run; ``None`` if nothing is pending."""
        if self._pending:
            return max(0.0, self._pending_since + COALESCE - now)
        return COALESCE if self._dropped else None

    def flush(self, now: float) -> None:
        """Write pending output."""
        self._emit()
        if self._dropped:
            self._mark(now)

    def close(self) -> None:
        """Write pending output and close the file."""
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
        count = self._dropped - len(self._dropped_end)
        self._event(now, "m", f"{count} bytes dropped; the raw log has them")
        self._decoder.reset()
        self._event(now, "o", self._decoder.decode(self._dropped_end))
        self._dropped = 0
        self._dropped_end = b""

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
            # The recording is a convenience: it ends, and the console continues.
            self.error = error
