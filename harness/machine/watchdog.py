"""The hang watchdog: detects a guest that hangs while it comes up, long before a deadline would.

A boot prints, computes or reads. A guest that does none of that for minutes waits for something that
will not come: a lost interrupt, a key that no test presses. The CPU time that QEMU takes shows this from
outside, whatever the guest is: each virtual CPU is a thread of QEMU's, and a halted one sleeps.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

IDLE: Final = 0.1
"""CPU seconds a second below which a guest that is not starved is idle: its timer's interrupts take
some. skiff at its prompt takes 0.01 to 0.02 under TCG."""

_LOOKS: Final = 20
"""How often the watchdog looks at the guest within its time limit."""


class HangWatchdog:
    """Watches one guest, in blocks that wait for it to come up.

    Args:
        activity: Returns the CPU seconds that QEMU has taken so far, and whether it is ready for more.
        silent: Returns for how many seconds the guest has printed nothing.
        on_hang: Called once, with the seconds, when the guest has been idle and silent for the time
            limit; in a thread of its own.
    """

    def __init__(
        self,
        activity: Callable[[], tuple[float, bool]],
        silent: Callable[[], float],
        on_hang: Callable[[float], None],
    ) -> None:
        self._activity = activity
        self._silent = silent
        self._on_hang = on_hang
        self._watching = threading.Lock()

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """Watch the guest in the block; a block within such a block adds nothing.

        Args:
            seconds: The time limit, on the host's clock. A guest that waits by its own clock waits as
                long there.
        """
        if not self._watching.acquire(blocking=False):
            yield
            return
        done = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(seconds, done), name="hang-watchdog", daemon=True
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
        while not done.wait(seconds / _LOOKS):
            before, at = at, time.monotonic()
            spent_before, (spent, ready) = spent, self._activity()
            idle = not ready and spent - spent_before < IDLE * (at - before)
            if not idle or self._silent() < at - before:
                since = at
            elif at - since >= seconds:
                self._on_hang(at - since)
                return
