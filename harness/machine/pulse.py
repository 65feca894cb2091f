"""Whether a guest that is to come up does anything: one that hangs is told of long before a deadline.

A boot prints, computes or reads. A guest that does none of that for minutes waits for something that
will not come: a lost interrupt, a key nobody presses. What QEMU spends on it says so from outside,
whatever the guest is: each virtual CPU is a thread of QEMU's, and a halted one sleeps.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

IDLE: Final = 0.1
"""Processor seconds a second below which a guest that is not starved is idle: its timer's interrupts
take some. skiff at its prompt takes 0.01 to 0.02 under TCG."""

_STEPS: Final = 20
"""So often it is looked at within the time that is given."""


class Pulse:
    """Watches one guest, in blocks that wait for it to come up.

    Args:
        activity: Returns the processor seconds that QEMU has taken so far, and whether it is ready
            for more.
        silent: Returns for how many seconds it has printed nothing.
        stopped: Called with the seconds, from a thread of its own, once it has been idle for so long.
    """

    def __init__(
        self,
        activity: Callable[[], tuple[float, bool]],
        silent: Callable[[], float],
        stopped: Callable[[float], None],
    ) -> None:
        self._activity = activity
        self._silent = silent
        self._stopped = stopped
        self._watching = threading.Lock()

    @contextlib.contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """In the block, tell when the guest was silent and idle for so long.

        A block within such a block does nothing.

        Args:
            seconds: On the host's clock. What a guest waits for by its own clock takes as long there.
        """
        if not self._watching.acquire(blocking=False):
            yield
            return
        done = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(seconds, done), name="pulse", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._watching.release()

    def _watch(self, seconds: float, done: threading.Event) -> None:
        since = at = time.monotonic()
        spent, _ = self._activity()
        while not done.wait(seconds / _STEPS):
            before, at = at, time.monotonic()
            spent_before, (spent, ready) = spent, self._activity()
            idle = not ready and spent - spent_before < IDLE * (at - before)
            if not idle or self._silent() < at - before:
                since = at
            elif at - since >= seconds:
                self._stopped(at - since)
                return
