"""One direction of a link: holds frames, and does to them what its impairment says.

A wire has no clock and no socket. It is called with the time, and puts frames on the :class:`Schedule`
that all wires of a segment share.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from harness.network.impairment import PERFECT, Dice, Flapping, Impairment

REORDER_WAIT: Final = 0.05
"""Seconds for which a reordered frame waits for another to pass it."""

HEADER: Final = 14
"""Bytes of an Ethernet header: two addresses and the type (IEEE 802.3, 3.1.1)."""

Link = tuple[str | None, str | None]
"""One direction: the port that frames come from, and the one that they go to.

``None`` is the switch: ``("a", None)`` carries all that a sends, ``(None, "a")`` all that a receives,
``("a", "b")`` what a sends to b. A frame from a to b takes these three in the order ``("a", None)``,
``("a", "b")``, ``(None, "b")``.
"""


def describe(link: Link) -> str:
    """Return the name of a link: ``a>b``, with ``*`` for the switch."""
    return f"{link[0] or '*'}>{link[1] or '*'}"


@dataclass(slots=True)
class WireCounters:
    """What became of the frames of a wire.

    Attributes:
        carried: Frames that arrived, copies included.
        cut: Dropped because the link was cut, parted or down.
        lost: Dropped by chance.
        overflowed: Dropped because the queue was full.
        duplicated: Frames that arrived twice.
        reordered: Frames that let the next one pass.
        corrupted: Frames with a flipped bit.
    """

    carried: int = 0
    cut: int = 0
    lost: int = 0
    overflowed: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0


class Flight:
    """A frame on a wire.

    Attributes:
        due: The time at which it arrives.
        wire: The wire.
        source: The port that it came from.
        frame: The frame; empty if it is not to arrive any more.
        waits: Whether it waits for another to pass it.
    """

    __slots__ = ("due", "frame", "source", "waits", "wire")

    def __init__(self, due: float, wire: Wire, source: str, frame: bytes, *, waits: bool) -> None:
        self.due = due
        self.wire = wire
        self.source = source
        self.frame = frame
        self.waits = waits


class Schedule:
    """The frames on all wires, by the time at which they arrive."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Flight]] = []
        # Frames that are due at the same time arrive in the order in which they were sent.
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, flight: Flight) -> None:
        """Add a frame."""
        heapq.heappush(self._heap, (flight.due, next(self._order), flight))

    def next_due(self) -> float | None:
        """Return when the next frame arrives; ``None`` if there is none."""
        return self._heap[0][0] if self._heap else None

    def arrivals(self, now: float) -> Iterator[Flight]:
        """Yield the frames that are due, in order."""
        while self._heap and self._heap[0][0] <= now:
            flight = heapq.heappop(self._heap)[2]
            if flight.frame:
                yield flight

    def all(self) -> list[Flight]:
        """Return all frames that have not arrived, in order."""
        return [flight for _, _, flight in sorted(self._heap, key=_by_time) if flight.frame]


def _by_time(entry: tuple[float, int, Flight]) -> tuple[float, int]:
    return entry[0], entry[1]


Deliver = Callable[[str, bytes], None]
Report = Callable[[str, str, bytes, str], None]
"""Called with the port that a frame came from, the link, the frame, and what the link did to it."""


class Wire:
    """One direction of a link.

    Args:
        link: Which.
        seed: The segment's.
        schedule: The segment's.
        deliver: Called for each frame that arrives, with the port that it came from.
        report: Called for each frame that the wire drops or corrupts.

    Attributes:
        impairment: What it does to frames.
        counters: What became of the frames.
    """

    def __init__(
        self, link: Link, seed: int, schedule: Schedule, deliver: Deliver, report: Report
    ) -> None:
        self.link = link
        self.impairment = PERFECT
        self.counters = WireCounters()
        self._name = describe(link)
        self._schedule = schedule
        self._dice = Dice(seed, self._name)
        self._deliver = deliver
        self._report = report
        # Each cut by the number of its fault: how it flaps, if it does, and since when.
        self._cuts: dict[int, tuple[Flapping | None, float]] = {}
        self._index = 0
        self._in_flight = 0
        self._free_at = 0.0
        self._last_due = 0.0
        self._waiting: Flight | None = None
        self._waited = False

    @property
    def idle(self) -> bool:
        """Whether frames pass as if it were not there."""
        return not (self.impairment or self._cuts)

    def impair(self, impairment: Impairment) -> None:
        """Do this to frames from now on; those that it holds arrive when they would have."""
        self.impairment = impairment
        # Otherwise what is sent now would queue behind the longer delays of the time before.
        self._free_at = self._last_due = 0.0

    def cut(self, fault: int, flapping: Flapping | None, now: float) -> None:
        """Cut it from now on, until the fault is healed.

        Args:
            fault: The number of the fault.
            flapping: The times at which it is cut; ``None`` for always.
            now: The time.
        """
        self._cuts[fault] = flapping, now

    def heal(self, fault: int) -> None:
        """Undo the cut of a fault, if it made one."""
        self._cuts.pop(fault, None)

    def heal_all(self) -> None:
        """Undo all cuts, and the impairment."""
        self._cuts.clear()
        self.impair(PERFECT)

    def is_down(self, now: float) -> bool:
        """Return whether no frame passes now."""
        return self.impairment.cut or any(
            flapping is None or flapping.is_down(now - since)
            for flapping, since in self._cuts.values()
        )

    def send(self, source: str, frame: bytes, now: float) -> None:
        """Send a frame: it arrives at once, later, twice, changed or never."""
        counters = self.counters
        if self.is_down(now):
            counters.cut += 1
            self._report(source, self._name, frame, "cut")
            return
        impairment = self.impairment
        if not impairment:
            counters.carried += 1
            self._deliver(source, frame)
            return
        index = self._index
        self._index += 1
        fate = self._dice.fate(index, impairment)
        waits = fate.reordered and not fate.lost and not self._waited
        self._waited = waits
        if fate.lost:
            counters.lost += 1
            self._report(source, self._name, frame, f"lost, number {index}")
            return
        if self._in_flight >= impairment.queue:
            counters.overflowed += 1
            self._report(source, self._name, frame, f"queue is full, number {index}")
            return
        if fate.corrupted and len(frame) > HEADER:
            counters.corrupted += 1
            frame = _flip(frame, fate.bit)
            self._report(source, self._name, frame, f"corrupted, number {index}")
        # The copy of a frame that waits would pass it, and nothing else could.
        copies = 1 if waits else fate.copies
        counters.duplicated += copies - 1
        for _ in range(copies):
            due = now
            if impairment.rate is not None:
                self._free_at = due = max(now, self._free_at) + len(frame) * 8 / impairment.rate
            due += impairment.delay + impairment.jitter * fate.drift
            due = self._last_due = max(due, self._last_due)
            if waits:
                counters.reordered += 1
                self._let_one_pass(source, frame, due)
            else:
                self._arrive(source, frame, due, now)

    def _let_one_pass(self, source: str, frame: bytes, due: float) -> None:
        self._waiting = self._schedule_frame(source, frame, due + REORDER_WAIT, waits=True)

    def _arrive(self, source: str, frame: bytes, due: float, now: float) -> None:
        if due <= now and not self._in_flight - (self._waiting is not None):
            self.counters.carried += 1
            self._deliver(source, frame)
        else:
            self._schedule_frame(source, frame, due)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            # It has been passed, and arrives right behind the frame that passed it.
            passed, waiting.frame = waiting.frame, b""
            self._in_flight -= 1
            self._arrive(waiting.source, passed, due, now)

    def _schedule_frame(
        self, source: str, frame: bytes, due: float, *, waits: bool = False
    ) -> Flight:
        flight = Flight(due, self, source, frame, waits=waits)
        self._in_flight += 1
        self._schedule.add(flight)
        return flight

    def arrive(self, flight: Flight) -> None:
        """Deliver a frame that is due."""
        self._in_flight -= 1
        if flight is self._waiting:
            self._waiting = None
        self.counters.carried += 1
        self._deliver(flight.source, flight.frame)

    # --- its state, for a fork of the segment -----------------------------------------------------

    def dump(self, now: float) -> dict[str, Any]:
        """Return its state without the frames that it holds, as plain JSON."""
        return {
            "link": list(self.link),
            "impairment": self.impairment.dump(),
            "cuts": [
                [fault, flapping and [flapping.up, flapping.down], now - since]
                for fault, (flapping, since) in self._cuts.items()
            ],
            "index": self._index,
            "waited": self._waited,
            "free_in": self._free_at - now,
            "last_due_in": self._last_due - now,
            "counters": asdict(self.counters),
        }

    def load(self, state: dict[str, Any], now: float) -> None:
        """Continue from a state."""
        self.impairment = Impairment.load(state["impairment"])
        self._cuts = {
            fault: (Flapping(*times) if times else None, now - elapsed)
            for fault, times, elapsed in state["cuts"]
        }
        self._index = state["index"]
        self._waited = state["waited"]
        self._free_at = now + state["free_in"]
        self._last_due = now + state["last_due_in"]
        self.counters = WireCounters(**state["counters"])

    def load_frame(self, source: str, frame: bytes, due: float, *, waits: bool) -> None:
        """Hold a frame that the saved wire held."""
        flight = self._schedule_frame(source, frame, due, waits=waits)
        if waits:
            self._waiting = flight


def _flip(frame: bytes, number: int) -> bytes:
    """Return the frame with one bit of its payload flipped, which a number chooses."""
    position = HEADER * 8 + number % ((len(frame) - HEADER) * 8)
    changed = bytearray(frame)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)
