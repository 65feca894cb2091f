"""How the machines of a fork begin to run at the same moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Together:
    """Where machines that have been loaded wait for each other before they begin to run.

    Args:
        count: The number of machines.
        begun: Called once, in the thread of one of them, when all run.
    """

    def __init__(self, count: int, begun: Callable[[], object]) -> None:
        self._begun = begun
        self._now: float | None = None
        self._loaded = threading.Barrier(count)
        self._running = threading.Barrier(count, self._begin)

    def _begin(self) -> None:
        self._now = time.time()
        self._begun()

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Wait until all are loaded; let one run in the block; wait until all run.

        Raises:
            threading.BrokenBarrierError: Another one does not start.
        """
        try:
            self._loaded.wait()
            yield
            self._running.wait()
        except BaseException:
            self.fail()
            raise

    def fail(self) -> None:
        """End the waits of all, present and later: one does not start."""
        self._loaded.abort()
        self._running.abort()

    @property
    def begun(self) -> bool:
        """Whether all run."""
        return self._now is not None

    def now(self) -> float:
        """Return the time for the clock of one of them, in seconds of the epoch.

        Clocks are set to whole seconds. All get the same fraction of a second cut off or added, so two
        of them differ by what setting them takes, and not by a second if one is set a moment later.
        """
        now = time.time()
        began = now if self._now is None else self._now
        return round(began) + round(now - began)
