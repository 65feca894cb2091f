"""What a server prints, line by line: kept as evidence, and the event that says it is ready."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import ServiceError, WaitTimeoutError

KEPT: Final = 20
"""Lines that a message shows."""

_LINE: Final = 4000
"""Characters of a line that are looked at."""


class Lines:
    """Reads a server's output in a thread until it ends.

    Args:
        source: The output; its end is the server's.
        path: The file that it is written to.
        ready: What the line that says "ready" matches.
    """

    def __init__(self, source: Iterable[bytes], path: Path, ready: re.Pattern[str]) -> None:
        self._source = source
        self._path = path
        self._ready = ready
        self._changed = threading.Condition()
        self._found: re.Match[str] | None = None
        self._ended = False
        self._last: deque[str] = deque(maxlen=KEPT)
        self._thread = threading.Thread(target=self._read, name="service's output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._path.open("ab") as file:
                for line in self._source:
                    file.write(line)
                    file.flush()
                    text = line[:_LINE].decode(errors="replace").rstrip()
                    with self._changed:
                        self._last.append(text)
                        self._found = self._found or self._ready.search(text)
                        self._changed.notify_all()
        except OSError as error:
            with self._changed:
                self._last.append(f"its output cannot be read or kept: {error}")
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @property
    def last(self) -> str:
        """The last lines."""
        with self._changed:
            return "\n".join(self._last)

    @property
    def ended(self) -> bool:
        """Whether the output has ended."""
        with self._changed:
            return self._ended

    def wait_ready(self, what: str, deadline: Deadline) -> re.Match[str]:
        """Return the match of the line that says "ready", when it comes.

        Raises:
            ServiceError: if the output ends first.
            WaitTimeoutError: at the deadline.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._found or self._ended, deadline.timeout())
            if self._found is not None:
                return self._found
            shown = "\n".join(self._last)
            if self._ended:
                raise ServiceError(
                    f"{what} ended before it was ready", evidence=f"{self._path}\n{shown}"
                )
        raise WaitTimeoutError(
            f"{what} to be ready", deadline.seconds, last_output=shown, evidence=str(self._path)
        )

    def join(self, seconds: float | None = None) -> None:
        """Wait until the output has ended: its server has been ended before.

        Args:
            seconds: How long at most, where it is somebody else who ends the server.
        """
        self._thread.join(seconds)
