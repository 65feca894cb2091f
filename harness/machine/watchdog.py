"""The hang watchdog: detects a guest that hangs while it comes up, long before a deadline would.

A boot makes *progress*: it prints lines that it has not printed before, reads its disk, computes. A
guest that does none of that for minutes waits for something that will not come: a lost interrupt, a
key that no test presses. The complaints of its kernel are no progress, and neither is a line that it
repeats with other numbers. Once the kernel has complained that something stands still, computing is
none either: a CPU that spins for ever computes.

A guest that the host starves gets more time, but not for ever: the part of the time for which a
thread of QEMU's was ready to run and did not is not counted, up to three quarters of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

COMPUTES: Final = 0.1
"""CPU seconds a second from which a guest computes: an idle one's timer interrupts take some. skiff
at its prompt takes 0.01 to 0.02 under TCG."""

STARVED_MOST: Final = 0.75
"""The part of the time that counts as starved at most, so that a starved guest gets up to four times
the limit. A host on which a guest gets nothing at all is the matter of the deadline's scale."""

_LOOKS: Final = 20
"""How often the watchdog looks at the guest within its time limit."""

_LONGEST: Final = 2.0
"""The time between two looks that counts, in intervals: when the runner itself was stopped for an
hour, one look after it proves nothing."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a guest has done since the last look.

    Attributes:
        advanced: Whether it printed something new, read its disk or restarted.
        stalled: Whether its kernel complained that something stands still.
        cpu: The CPU seconds that QEMU took.
        starved: The seconds for which a thread of QEMU's was ready to run and did not.
    """

    advanced: bool
    stalled: bool
    cpu: float
    starved: float


@dataclass(frozen=True, slots=True)
class Hang:
    """A guest that made no progress for the time limit.

    Attributes:
        seconds: The time since its last progress.
        cpu: The CPU seconds that QEMU took in it.
        starved: The seconds for which QEMU was ready to run in it and did not.
    """

    seconds: float
    cpu: float
    starved: float


class HangWatchdog:
    """Watches one guest, in blocks that wait for it to come up.

    Args:
        begin: Called at the beginning of a block; returns a function that looks at the guest.
        on_hang: Called when the guest has made no progress for the time limit, in a thread of its
            own; returns whether that was reported. If not, as of a paused guest, the time begins anew.
    """

    def __init__(
        self, begin: Callable[[], Callable[[], Look]], on_hang: Callable[[Hang], bool]
    ) -> None:
        self._begin = begin
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
        interval = seconds / _LOOKS
        look_at = self._begin()
        since = at = time.monotonic()
        idle = cpu = starved = 0.0
        complaining = False
        while not done.wait(interval):
            before, at = at, time.monotonic()
            look = look_at()
            complaining = look.stalled or (complaining and not look.advanced)
            computes = look.cpu >= COMPUTES * (at - before) and not complaining
            if look.advanced or computes:
                since, idle, cpu, starved = at, 0.0, 0.0, 0.0
                continue
            cpu += look.cpu
            starved += look.starved
            share = min(look.starved / (at - before), STARVED_MOST)
            idle += min(at - before, _LONGEST * interval) * (1 - share)
            if idle >= seconds:
                if self._on_hang(Hang(at - since, cpu, starved)):
                    return
                since, idle, cpu, starved = at, 0.0, 0.0, 0.0
