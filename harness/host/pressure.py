"""Pressure: what this host gives its guests, measured while they run.

While a machine runs, one thread per process reads the kernel's counters once a second
(:mod:`harness.host.readings`) and draws two conclusions:

- the *stretch*: how many times as long things take now as on a calm host. A clock of calm seconds, which
  the machines' deadlines count, follows it (:mod:`harness.deadline`);
- the *level*: whether the host is calm or under pressure. A wait, a stall or a hang that ends while it
  is under pressure is the host's fault: its error carries the figures, and its verdict is ``infra``.

The best witness is QEMU itself: of the time in which its threads wanted a CPU, the share in which they
had one. It holds in a container, under a CPU quota and under KVM; a guest that asks for nothing is not
slowed down. Where the kernel does not count it, threads that are ready and do not run stand for it. The
other witnesses: runnable threads of others, CPU time that a hypervisor stole, PSI of memory and I/O,
free memory, free disk space, and the measuring thread itself, when it is late.

The kernel reports none of this as an event. PSI's triggers tell when a stall begins, but PSI of the CPU
reads 80 to 100 % as soon as two guests boot on two CPUs: it does not tell them from a load of 16. So the
thread wakes once a second; that takes 0.03 to 0.1 % of a CPU.

What was measured, with two CPUs and guests with two virtual CPUs under TCG (``micro`` boots):

===================================  =========  =========  =======================
load                                 share      PSI, CPU   boot to SSH login
===================================  =========  =========  =======================
none, one guest                      0.77-0.89  0.80-0.91  4.5 s
none, two guests                     0.51-0.67  0.82-0.96  6 to 7 s
12 runnable threads of others        0.08-0.42  0.94-1.00  10 s
24 others                            0.05-0.12  1.00       31 s
33 others                            0.02-0.08  1.00       54 s
===================================  =========  =========  =======================
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from harness.deadline import MOST, NOTABLE, Conditions
from harness.evidence.timeline import Timeline
from harness.host import readings
from harness.host.capacity import Capacity, capacity
from harness.host.readings import Reading

PERIOD: Final = 1.0
"""Seconds between two looks at the host."""

# A level holds for a window of several looks, so that one bad second is none.
_WINDOW: Final = 3.0

# Admission grants two virtual CPUs for each CPU, so guests of Harness alone leave each other a share of
# one half. Less than a third is the work of others. Two bounds, so that the level does not flutter.
_STARVED: Final = 0.35
_FED: Final = 0.45
# CPUs that QEMU has to ask for before its share says something: idle guests ask for 0.02 to 0.1.
_ASKED: Final = 0.2
_ASKED_A_LITTLE: Final = 0.02

# Runnable threads of others for each CPU. The guests of another worker of Harness are two.
_QUEUE: Final = 2.5

# Parts of the time. A hypervisor that takes a quarter makes a busy host; a host without memory spends
# its time on reclaim; on a disk that keeps up, hardly ever does everything wait at once.
_STOLEN: Final = 0.25
_MEMORY_STALLS: Final = 0.2
_IO_STALLS: Final = 0.6

_LITTLE_MEMORY: Final = 256 << 20
_LITTLE_DISK: Final = 256 << 20

# The thread is late because it got no CPU, or because a signal stopped the process.
_LATE: Final = 2.0

# A jump of a clock: slewing moves it by 0.5 ms a second at most (adjtimex(2)).
_JUMP: Final = 0.5

# A wait was under pressure if the host was for a tenth of it, or for as long as it takes a guest to lose
# its way in a boot. A false "infra" costs a second try, a false "timeout" a person's time.
_PART: Final = 0.1
_LONG: Final = 10.0

# Looks are kept for an hour; then those that are old are thinned out, to one in 1/500 of their age.
_MARKS: Final = 4096
_GRAIN: Final = 500

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sums:
    """Integrals over some time.

    Attributes:
        seconds: The time.
        ran: CPU seconds of QEMU's threads.
        waited: Seconds in which they wanted a CPU and had none.
        queued: The runnable threads of others, times seconds.
        stolen: Seconds that the hypervisor took.
        memory: Seconds of stalls for memory (PSI, some).
        io: Seconds in which everything waited for I/O (PSI, full).
        late: Seconds by which the measuring thread was late.
        asleep: Seconds of suspend.
        oom_kills: Processes that the kernel killed for lack of memory.
    """

    seconds: float = 0.0
    ran: float = 0.0
    waited: float = 0.0
    queued: float = 0.0
    stolen: float = 0.0
    memory: float = 0.0
    io: float = 0.0
    late: float = 0.0
    asleep: float = 0.0
    oom_kills: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) + getattr(other, name) for name in _NAMES))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) - getattr(other, name) for name in _NAMES))

    @property
    def asked(self) -> float:
        """The CPU seconds that QEMU's threads wanted."""
        return self.ran + self.waited

    @property
    def share(self) -> float:
        """The part of it that they got; 1.0 if they wanted nothing."""
        return self.ran / self.asked if self.asked > 0 else 1.0

    def part(self, seconds: float) -> float:
        """Return an integral as a part of the time."""
        return seconds / self.seconds if self.seconds > 0 else 0.0


_NAMES: Final = tuple(each.name for each in fields(Sums))


@dataclass(frozen=True, slots=True)
class Mark:
    """The sums at one moment, from the first look on.

    Attributes:
        at: The moment, on the clock of :func:`time.monotonic`.
        calm: The calm seconds.
        total: The sums over all time.
        pressed: The sums over the time under pressure.
        stepped: By how many seconds the wall clock was set.
        memory: Bytes of available memory.
        disk: Free bytes of disk.
    """

    at: float
    calm: float = 0.0
    total: Sums = field(default_factory=Sums)
    pressed: Sums = field(default_factory=Sums)
    stepped: float = 0.0
    memory: int = 1 << 62
    disk: int = 1 << 62


class Pressure:
    """Measures this host while machines run; the clock of their deadlines. Safe from any thread.

    Args:
        folders: Where Harness writes: their free space counts.
        read: Returns the counters for the QEMU processes with these ids.
        now: The clock; :func:`time.monotonic`.
        room: The capacity of this process; read from the host by default.
        period: Seconds between two looks; ``None`` for no thread: the caller calls :meth:`look`.
    """

    def __init__(
        self,
        folders: Iterable[Path] = (),
        *,
        read: Callable[[Iterable[int]], Reading] | None = None,
        now: Callable[[], float] = time.monotonic,
        room: Capacity | None = None,
        period: float | None = PERIOD,
    ) -> None:
        self._read = read or functools.partial(readings.read, folders=tuple(folders))
        self._now = now
        self._room = room
        self._period = period
        self._lock = threading.RLock()
        self._marks = [Mark(now())]
        self._last: Reading | None = None
        self._stretch = 1.0
        self._pressed = False
        self._watched: dict[object, tuple[int, Timeline]] = {}
        self._thread: threading.Thread | None = None
        self._done = threading.Event()

    # --- the machines -------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self, pid: int, timeline: Timeline, name: str = "") -> Iterator[None]:
        """Measure in the block, for the machine whose QEMU has this process id.

        The timeline gets each change of the level and each jump of a clock, and at the end of the block
        the figures of the whole time.

        Args:
            pid: The process id of QEMU.
            timeline: The timeline of the machine's test.
            name: The machine's name.
        """
        key = object()
        with self._lock:
            self._watched[key] = (pid, timeline)
            if len(self._watched) == 1:
                self._begin()
            since = self._now()
        try:
            yield
        finally:
            figures = self.figures(since)
            with self._lock:
                del self._watched[key]
                thread = None if self._watched else self._end()
            if thread is not None:
                thread.join()
            timeline.note("host", machine=name, **figures)

    def _begin(self) -> None:
        """Start to measure; the lock is held."""
        self._marks.append(replace(self._marks[-1], at=self._now(), calm=self.calm()))
        self._last = None
        self.look()
        if self._period is not None:
            self._done = threading.Event()
            self._thread = threading.Thread(
                target=self._serve,
                args=(self._period, self._done),
                name="host-pressure",
                daemon=True,
            )
            self._thread.start()

    def _end(self) -> threading.Thread | None:
        """Stop measuring; the lock is held. The thread that is returned needs it once more."""
        self._last = None
        self._stretch, self._pressed = 1.0, False
        self._done.set()
        thread, self._thread = self._thread, None
        return thread

    def _serve(self, period: float, done: threading.Event) -> None:
        noted, before = False, self._marks[-1]
        while not done.wait(period):
            self.look()
            with self._lock:
                if done.is_set():
                    return
                now = self._marks[-1]
                pressed = self._pressed
                timelines = {id(each): each for _, each in self._watched.values()}
            remarks = _jumps(before, now)
            words = _words(now.pressed - before.pressed, [now], self._capacity) if pressed else ""
            before = now
            for timeline in timelines.values():
                if remarks:
                    timeline.note("the host's clocks jumped", what=remarks)
                if pressed and not noted:
                    timeline.note("the host is under pressure", what=words)
                elif noted and not pressed:
                    timeline.note("the host is calm again")
            noted = pressed

    @functools.cached_property
    def _capacity(self) -> Capacity:
        return self._room or capacity()

    # --- the clock ----------------------------------------------------------------------------

    def calm(self) -> float:
        """Return the calm seconds since the beginning."""
        with self._lock:
            mark = self._marks[-1]
            since = self._now() - mark.at
            if self._last is None:
                return mark.calm + since
            # A look that is overdue is itself a sign of pressure.
            usual = min(since, 2 * PERIOD)
            return mark.calm + usual / self._stretch + (since - usual) / MOST

    def stretch(self) -> float:
        """Return how many seconds a calm second takes now, from 1 to :data:`~harness.deadline.MOST`."""
        return self._stretch

    def during(self, since: float) -> Conditions:
        """Return how the host was since a point on the clock of :func:`time.monotonic`.

        The beginning of a time is known to a second, of hours to 1/500 of them.
        """
        with self._lock:
            self._refresh()
            marks = self._since(since)
            first, last = marks[0], marks[-1]
            seconds = last.at - first.at
            calm = last.calm - first.calm
            pressed = last.pressed - first.pressed
        pressure = ""
        long = pressed.seconds >= min(_PART * seconds, _LONG)
        if pressed.asleep or pressed.oom_kills or (pressed.seconds and long):
            pressure = (
                f"the host was under pressure for {pressed.seconds:.0f} of {seconds:.0f} s: "
                + _words(pressed, marks, self._capacity)
            )
        stretch = min(max(seconds / calm, 1.0), MOST) if calm > 0 else 1.0
        return Conditions(stretch, pressure, _jumps(first, last))

    def words(self, since: float) -> str:
        """Return a note on a step that began then: how far it was stretched, and why; often empty."""
        if self._now() - since < PERIOD:
            return ""
        conditions = self.during(since)
        stretched = f"stretched x {conditions.stretch:.1f}" if conditions.stretch >= NOTABLE else ""
        return "; ".join(filter(None, [stretched, conditions.pressure, conditions.remarks]))

    def figures(self, since: float) -> dict[str, Any]:
        """Return the figures since a point in time, for the timeline; parts of the time are 0 to 1."""
        conditions = self.during(since)
        with self._lock:
            marks = self._since(since)
        sums = marks[-1].total - marks[0].total
        pressed = marks[-1].pressed - marks[0].pressed
        return {
            "seconds": round(sums.seconds, 1),
            "pressed": round(pressed.seconds, 1),
            "stretch": round(conditions.stretch, 2),
            "cpu_asked": round(sums.part(sums.asked), 3),
            "cpu_got": round(sums.part(sums.ran), 3),
            "others_runnable": round(sums.part(sums.queued), 1),
            "stolen": round(sums.part(sums.stolen), 3),
            "memory_stalls": round(sums.part(sums.memory), 3),
            "io_stalls": round(sums.part(sums.io), 3),
            "memory_mib": min(mark.memory for mark in marks) // _MIB,
            "disk_mib": min(mark.disk for mark in marks) // _MIB,
            "oom_kills": int(sums.oom_kills),
            "remarks": conditions.remarks,
        }

    # --- the looks ----------------------------------------------------------------------------

    def look(self) -> None:
        """Read the counters and account for the time since the last look."""
        with self._lock:
            reading = self._read([pid for pid, _ in self._watched.values()])
            before, self._last = self._last, reading
            mark = self._marks[-1]
            if before is None:
                self._marks[-1] = replace(mark, memory=reading.memory, disk=reading.disk)
                return
            sums = _sums(before, reading)
            if sums.seconds <= 0:
                return
            self._stretch = _stretch(sums)
            punctual = sums.seconds - sums.late
            calm = mark.calm + punctual / self._stretch + sums.late / MOST
            step = reading.epoch - before.epoch
            total = mark.total + sums
            new = Mark(
                at=reading.at,
                calm=calm,
                total=total,
                pressed=mark.pressed,
                stepped=mark.stepped + (step if abs(step) >= _JUMP else 0.0),
                memory=reading.memory,
                disk=reading.disk,
            )
            window = self._since(reading.at - _WINDOW)[0]
            self._pressed = self._is_pressed(total - window.total, new)
            if self._pressed:
                new = replace(new, pressed=mark.pressed + sums)
            self._marks.append(new)
            if len(self._marks) > _MARKS:
                self._marks = _thinned(self._marks)

    def _refresh(self) -> None:
        """Look again; the lock is held. What killed QEMU may have come right after the last look."""
        if self._last is not None:
            self.look()

    def _since(self, at: float) -> list[Mark]:
        """Return the marks since a moment and the last one before it, two if possible; with the lock."""
        index = bisect.bisect_right(self._marks, at, key=lambda mark: mark.at)
        return self._marks[max(0, min(index - 1, len(self._marks) - 2)) :]

    def _is_pressed(self, sums: Sums, mark: Mark) -> bool:
        starved = _FED if self._pressed else _STARVED
        host = self._capacity.cpu_limit == "host"
        return (
            (sums.part(sums.asked) >= _ASKED and sums.share < starved)
            # The queue of the whole host says nothing about the share of a cgroup.
            or (host and sums.part(sums.queued) >= _QUEUE * self._capacity.cpus)
            or sums.part(sums.stolen) >= _STOLEN
            or sums.part(sums.memory) >= _MEMORY_STALLS
            or sums.part(sums.io) >= _IO_STALLS
            or sums.late > 0
            or sums.asleep > 0
            or sums.oom_kills > 0
            or mark.memory < _LITTLE_MEMORY
            or mark.disk < _LITTLE_DISK
        )


def _thinned(marks: list[Mark]) -> list[Mark]:
    """Return the marks that suffice to know a time to a small part of itself."""
    now, kept = marks[-1].at, [marks[0]]
    for mark, after in itertools.pairwise(marks[1:]):
        if after.at - kept[-1].at > (now - mark.at) / _GRAIN:
            kept.append(mark)
    return [*kept, marks[-1]]


def _sums(before: Reading, after: Reading) -> Sums:
    """Return what happened between two readings."""
    seconds = after.at - before.at
    ran = waited = 0.0
    for thread, task in after.tasks.items():
        if (old := before.tasks.get(thread)) is None:
            continue
        had = max(0.0, task.ran - old.ran)
        ran += had
        if task.waited is not None and old.waited is not None:
            waited += max(0.0, task.waited - old.waited)
        elif task.ready:
            waited += max(0.0, seconds - had)
    stalls = {
        kind: max(
            (
                max(0.0, total - before.stalls.get((folder, kind), total))
                for (folder, each), total in after.stalls.items()
                if each == kind
            ),
            default=0.0,
        )
        for kind in ("memory some", "io full")
    }
    asleep = after.asleep - before.asleep
    late = seconds - PERIOD
    own = (ran + waited) / seconds if seconds > 0 else 0.0
    return Sums(
        seconds=seconds,
        ran=ran,
        waited=waited,
        # By Little's law, QEMU's part of the queue is the time that its threads ran or waited.
        queued=max(0.0, after.runnable - 1 - own) * seconds,
        stolen=max(0.0, after.stolen - before.stolen),
        memory=stalls["memory some"],
        io=stalls["io full"],
        late=late if late >= _LATE else 0.0,
        asleep=asleep if asleep >= _JUMP else 0.0,
        # A kill counts in its cgroup, in those above and in the host.
        oom_kills=max(
            (count - before.oom_kills.get(path, count) for path, count in after.oom_kills.items()),
            default=0,
        ),
    )


def _stretch(sums: Sums) -> float:
    """Return how many times as long a guest took."""
    cpu = 1.0
    if sums.part(sums.asked) >= _ASKED_A_LITTLE:
        cpu = 1.0 / max(sums.share, 1.0 / MOST)
    free = 1.0 - min(max(sums.part(sums.stolen), sums.part(sums.io)), 1.0 - 1.0 / MOST)
    return min(max(cpu / free, 1.0), MOST)


def _words(sums: Sums, marks: list[Mark], room: Capacity) -> str:
    """Return the figures that show pressure."""
    cpu = []
    if sums.part(sums.asked) >= _ASKED_A_LITTLE and sums.share < 1 / NOTABLE:
        cpu.append(f"QEMU got {sums.share:.0%} of what it asked for")
    queued = sums.part(sums.queued)
    if queued >= room.cpus:
        cpu.append(f"{queued:.0f} other threads were runnable for {room.cpus:g} CPUs")
    if (stolen := sums.part(sums.stolen)) >= _STOLEN / 5:
        cpu.append(f"a hypervisor took {stolen:.0%}")
    parts = [f"CPU: {', '.join(cpu)}"] if cpu else []
    if (memory := sums.part(sums.memory)) >= _MEMORY_STALLS / 4:
        parts.append(f"stalls for memory {memory:.0%} of the time")
    if sums.oom_kills:
        parts.append(f"the kernel killed {sums.oom_kills:.0f} processes for lack of memory")
    if (available := min(mark.memory for mark in marks)) < 4 * _LITTLE_MEMORY:
        parts.append(f"{available // _MIB} MiB of memory available")
    if (io := sums.part(sums.io)) >= _IO_STALLS / 4:
        parts.append(f"everything waited for I/O {io:.0%} of the time")
    if (free := min(mark.disk for mark in marks)) < 4 * _LITTLE_DISK:
        parts.append(f"{free // _MIB} MiB of disk free")
    if sums.late:
        parts.append(f"Harness itself did not run for {sums.late:.0f} s")
    if sums.asleep:
        parts.append(f"the host was suspended for {sums.asleep:.0f} s")
    return "; ".join(parts) or "for moments only"


def _jumps(first: Mark, last: Mark) -> str:
    """Return how the host's clocks jumped between two marks."""
    parts = []
    if asleep := last.total.asleep - first.total.asleep:
        parts.append(f"the host was suspended for {asleep:.0f} s")
    if step := last.stepped - first.stepped:
        direction = "forward" if step > 0 else "back"
        parts.append(f"the host's clock was set {direction} by {abs(step):.1f} s")
    return ", ".join(parts)
