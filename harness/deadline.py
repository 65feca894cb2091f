"""Deadlines on the monotonic clock, stretched to what one guest needs.

Every wait of Harness takes a deadline. A caller writes the seconds that a good host under KVM needs; the
*scale* of a machine stretches them: emulation is slower by an order of magnitude. A deadline is created
once and handed down, so that the parts of a wait share one budget.

Other load of the host comes and goes while a wait goes on. So a machine's scale has a *clock* of calm
seconds (:mod:`harness.host.pressure`), which runs slower while the guest gets less of the host than it
asks for. A deadline counts calm seconds, and is over at the latest after :data:`MOST` times its length.
A wait therefore wakes after :meth:`Deadline.timeout` and looks at :attr:`Deadline.expired` again:
:meth:`Deadline.wait` does that.

In every public word, ``deadline`` is the last argument that may be given by position; a word that takes
any number of arguments takes it by name alone.
"""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from harness.errors import UsageError

TCG_SCALE: Final = 8.0
"""Emulation against KVM: the boot of skiff takes about 8 s under KVM and 70 s under TCG."""

MOST: Final = 8.0
"""How many times its length a deadline becomes at most under the load of the host."""

NOTABLE: Final = 1.25
"""A stretch that is worth a word; a single guest on a calm host measures 1.1 to 1.2."""

SUDDEN: Final = 10.0
"""Seconds before an end that nobody asked for, of a process or a connection, in which pressure on the
host may have been its cause."""

_LONGEST_POLL: Final = 2.0**31 - 1
_LOOK: Final = 1.0
"""Seconds after which a wait that the load stretches looks whether the load has gone."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the host was during some time.

    Attributes:
        stretch: How many times as long things took as on a calm host, on average; 1 to :data:`MOST`.
        pressure: Why the host was under pressure, with figures; empty if it was calm.
        remarks: What else happened to the host: a suspend, a step of its clock. Empty for nothing.
    """

    stretch: float = 1.0
    pressure: str = ""
    remarks: str = ""


class Clock(Protocol):
    """Counts calm seconds: it runs slower than the monotonic clock while the host is under load."""

    def calm(self) -> float:
        """Return the calm seconds since some point."""

    def stretch(self) -> float:
        """Return how many seconds a calm second takes now, from 1 to :data:`MOST`."""

    def during(self, since: float) -> Conditions:
        """Return how the host was since a point on the clock of :func:`time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time.

    Attributes:
        seconds: Its length when it was created, after scaling.
        at: The point on the clock of :func:`time.monotonic`, if the host is calm; ``inf`` for never.
        scale: The scale that it was made by.
        start: The calm seconds of the scale's clock when it was created.
    """

    seconds: float
    at: float
    scale: Scale | None = None
    start: float = 0.0

    @property
    def _clock(self) -> Clock | None:
        return None if self.scale is None else self.scale.clock

    @property
    def _latest(self) -> float:
        return self.at + (MOST - 1) * self.seconds

    def _calm_left(self, clock: Clock) -> float:
        return self.seconds - (clock.calm() - self.start)

    def remaining(self) -> float:
        """Return the seconds left if the load stays as it is, never below 0; ``inf`` for never."""
        now = time.monotonic()
        left = self.at - now
        if self._clock is not None:
            stretched = self._calm_left(self._clock) * self._clock.stretch()
            left = min(max(stretched, left), self._latest - now)
        return max(0.0, left)

    def timeout(self) -> float | None:
        """Return the seconds after which a wait must look at :attr:`expired`; ``None`` for never.

        That is the time left on a calm host, in the form that waits of the standard library take.
        """
        if math.isinf(self.at):
            return None
        left = self.remaining()
        if self._clock is not None:
            left = min(left, max(self._calm_left(self._clock), _LOOK))
        # Longer waits raise OverflowError (Python's documentation of threading.TIMEOUT_MAX).
        return min(left, threading.TIMEOUT_MAX)

    def poll_timeout(self) -> float | None:
        """Return :meth:`timeout` in milliseconds as ``poll(2)`` takes them: an int, 24 days at most."""
        seconds = self.timeout()
        return None if seconds is None else min(seconds * 1000, _LONGEST_POLL)

    def wait(self, step: Callable[[float | None], T]) -> T:
        """Call a wait until it succeeds or the deadline has passed; return its last result.

        Args:
            step: Waits for at most the seconds that it is called with, ``None`` for ever; its result is
                true if it succeeded. It is called once more with 0 after the deadline.
        """
        while True:
            expired = self.expired
            result = step(0.0 if expired else self.timeout())
            if result or expired:
                return result

    @property
    def expired(self) -> bool:
        """Whether the point has passed."""
        now = time.monotonic()
        if self._clock is None or now < self.at:
            return now >= self.at
        return self._calm_left(self._clock) <= 0 or now >= self._latest

    @property
    def elapsed(self) -> float:
        """The seconds since it was created."""
        return self.seconds - (self.at - time.monotonic())

    def account(self) -> str:
        """Return how its length came about: ``60 s x 8.0 (emulation), stretched x 2.3 ...``."""
        scale = self.scale
        parts = []
        if scale is not None and not math.isclose(scale.factor, 1.0):
            why = f" ({scale.reason})" if scale.reason else ""
            parts.append(f"{self.seconds / scale.factor:g} s x {scale.factor:.3g}{why}")
        conditions = self._conditions()
        if conditions.stretch >= NOTABLE:
            parts.append(f"stretched x {conditions.stretch:.1f} for the load of the host")
        if conditions.remarks:
            parts.append(conditions.remarks)
        return ", ".join(parts)

    def pressure(self) -> str:
        """Return why the host, not the guest, may be the cause if it passes; empty if it is not."""
        return "" if self.scale is None else self.scale.pressure(self.elapsed)

    @property
    def doubt(self) -> str:
        """Why this host cannot run the guest as it was asked to; empty if it can."""
        return "" if self.scale is None else self.scale.doubt

    def _conditions(self) -> Conditions:
        if self._clock is None:
            return Conditions()
        return self._clock.during(self.at - self.seconds)


NEVER: Final = Deadline(math.inf, math.inf)

Limit = Deadline | float | None
"""A deadline; or seconds on a good host, which a scale stretches; or ``None`` for the default."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many times as long one guest takes as the same guest on a good host under KVM.

    Each machine has its own: an emulated arm64 guest is slower than the x86-64 one beside it.

    Attributes:
        factor: The factor on a calm host; 1.0 on a good one.
        reason: What the factor is made of, for messages: ``emulation``.
        clock: Stretches deadlines further while the host is under load; ``None`` for fixed ones.
        doubt: Why this host cannot run the guest as it was asked to; empty if it can.

    Raises:
        ValueError: The factor is not a positive finite number.
    """

    factor: float = 1.0
    reason: str = ""
    clock: Clock | None = None
    doubt: str = ""

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"a scale is a positive finite number, not {self.factor!r}")

    def after(self, seconds: float) -> Deadline:
        """Return the deadline that is ``seconds`` of a good host from now."""
        length = seconds * self.factor
        start = 0.0 if self.clock is None else self.clock.calm()
        return Deadline(length, time.monotonic() + length, self, start)

    def pressure(self, seconds: float) -> str:
        """Return why the host, not the guest, may be the cause of what happened in the last seconds."""
        conditions = Conditions()
        if self.clock is not None:
            conditions = self.clock.during(time.monotonic() - seconds)
        return "; ".join(filter(None, [self.doubt, conditions.pressure]))

    def limit(self, limit: Limit, default: float) -> Deadline:
        """Return ``limit`` as a deadline: unchanged, or from seconds, or from the default seconds."""
        if isinstance(limit, Deadline):
            return limit
        return self.after(default if limit is None else limit)


def run(
    command: Sequence[str | Path], limit: Deadline, *, at: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program without input, as :func:`subprocess.run` does; kill it when a deadline passes.

    Args:
        command: The program and its arguments.
        limit: The deadline.
        at: The folder that it runs in.

    Raises:
        subprocess.TimeoutExpired: The deadline passed.
        OSError: It cannot be run.
    """
    with subprocess.Popen(
        command,
        cwd=at,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:

        def output(seconds: float | None) -> tuple[bytes, bytes] | None:
            try:
                return process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                return None  # what came so far is kept for the next call

        try:
            ended = limit.wait(output)
        except BaseException:
            process.kill()
            raise
        if ended is None:
            process.kill()
            raise subprocess.TimeoutExpired(process.args, limit.elapsed)
    return subprocess.CompletedProcess(process.args, process.returncode, *ended)


def by_name(word: str, texts: Sequence[object]) -> None:
    """Check the arguments of a word that takes any number of texts, and a deadline by name.

    Args:
        word: The word, for the message.
        texts: Its arguments.

    Raises:
        UsageError: One of them is no text: a deadline by position.
    """
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(
                f"{word} takes texts, and not {text!r}",
                hint="this word takes any number of texts, so its deadline needs its name: deadline=30",
            )


UNSCALED: Final = Scale()
"""The scale of the host's own work."""
