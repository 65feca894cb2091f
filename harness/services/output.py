"""The output of a server: evidence, and the event that says that the server is ready."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import ServiceError, WaitTimeoutError

KEPT: Final = 20
"""Lines that a message shows."""

_LINE: Final = 4000
"""Characters of a line that are searched and shown."""


class ServerOutput:
    """Reads a server's output in a thread until it ends.

    Args:
        source: The lines of the output.
        path: The file that receives the output.
        ready: The pattern of the line that says that the server is ready.
        on_end: Called once, from the thread, with the last lines, when the output has ended.
    """

    def __init__(
        self,
        source: Iterable[bytes],
        path: Path,
        ready: re.Pattern[str],
        on_end: Callable[[str], None] = lambda last: None,
    ) -> None:
        self._source = source
        self._path = path
        self._ready = ready
        self._on_end = on_end
        self._changed = threading.Condition()
        self._match: re.Match[str] | None = None
        self._ended = False
        self._last: deque[str] = deque(maxlen=KEPT)
        self._thread = threading.Thread(target=self._read, name="server output", daemon=True)
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
                        self._match = self._match or self._ready.search(text)
                        self._changed.notify_all()
        except OSError as error:
            with self._changed:
                self._last.append(f"the output cannot be read or written: {error}")
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._on_end(self.last)

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

    def wait_ready(self, server: str, deadline: Deadline) -> re.Match[str]:
        """Wait for the line that says that the server is ready, and return its match.

        Args:
            server: The server's name for messages.
            deadline: The end of the wait.

        Raises:
            ServiceError: The output ended first.
            WaitTimeoutError: The deadline passed.
        """
        with self._changed:
            deadline.wait(
                lambda left: self._changed.wait_for(lambda: self._match or self._ended, left)
            )
            if self._match is not None:
                return self._match
            shown = "\n".join(self._last)
            if self._ended:
                raise ServiceError(
                    f"{server} ended before it was ready", evidence=f"{self._path}\n{shown}"
                )
        raise WaitTimeoutError(
            f"{server} to be ready", deadline, last_output=shown, evidence=str(self._path)
        )

    def join(self, seconds: float | None = None) -> None:
        """Wait until the output has ended and ``on_end`` has returned.

        Args:
            seconds: The longest wait, for a server that another program ends.
        """
        self._thread.join(seconds)
