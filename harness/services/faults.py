"""What can be wrong with a server: faults that a test switches on for paths or for connections.

Faults of an answer alter what the real server said on its way to the guest. Those of a connection
(:class:`ExpiredCertificate`, :class:`UnknownCa`) have no path: TLS fails before one is told.
"""

from __future__ import annotations

import fnmatch
import threading
from dataclasses import dataclass
from types import TracebackType

from harness.errors import UsageError


@dataclass(frozen=True, slots=True)
class Slow:
    """The body comes at a rate.

    Attributes:
        rate: Bytes a second, from 1.
    """

    rate: int

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise UsageError(f"a rate is at least 1 byte a second, not {self.rate}")


@dataclass(frozen=True, slots=True)
class CutOff:
    """The connection closes after a part of the body, whose whole length was announced.

    Attributes:
        percent: How much of the body comes, 0 to 100.
    """

    percent: float

    def __post_init__(self) -> None:
        _check_percent(self.percent)

    def kept(self, length: int) -> int:
        """Return how many of ``length`` bytes come: fewer than all, of a body that has any."""
        return min(int(length * self.percent / 100), max(0, length - 1))


@dataclass(frozen=True, slots=True)
class ServerError:
    """The server answers with an error, without looking at the path.

    Attributes:
        status: 500 to 599.
    """

    status: int = 500

    def __post_init__(self) -> None:
        if not 500 <= self.status <= 599:
            raise UsageError(f"a server's error is 500 to 599, not {self.status}")


@dataclass(frozen=True, slots=True)
class WrongLength:
    """``Content-Length`` lies; the body is the real one, and the connection closes after it.

    Attributes:
        by: Bytes that the header says more (or fewer, if negative) than there are.
    """

    by: int

    def __post_init__(self) -> None:
        if not self.by:
            raise UsageError("a length that is wrong by 0 is right")


@dataclass(frozen=True, slots=True)
class FlippedBit:
    """One bit of the body is the other one; the length is right.

    Attributes:
        offset: The byte, from the file's beginning (or its end, if negative); or
        percent: how far into the file it is, 0 to 100. One of the two; the middle by default.
        bit: Which of its bits, 0 the lowest.
    """

    offset: int | None = None
    percent: float | None = None
    bit: int = 0

    def __post_init__(self) -> None:
        if self.offset is not None and self.percent is not None:
            raise UsageError("a flipped bit is at an offset or at a percentage, not at both")
        if self.percent is not None:
            _check_percent(self.percent)
        if not 0 <= self.bit <= 7:
            raise UsageError(f"a byte has the bits 0 to 7, not {self.bit}")

    def where(self, length: int) -> int:
        """Return the byte of a file of ``length`` bytes; one beyond its end hits none."""
        if self.offset is not None:
            return self.offset if self.offset >= 0 else length + self.offset
        percent = 50.0 if self.percent is None else self.percent
        return min(int(length * percent / 100), max(0, length - 1))


@dataclass(frozen=True, slots=True)
class ExpiredCertificate:
    """The server shows a certificate of the run's CA that was valid until yesterday."""


@dataclass(frozen=True, slots=True)
class UnknownCa:
    """The server shows a certificate of a CA that nobody was told of."""


OfAnswer = Slow | CutOff | ServerError | WrongLength | FlippedBit
OfConnection = ExpiredCertificate | UnknownCa
Fault = OfAnswer | OfConnection


def _check_percent(percent: float) -> None:
    if not 0 <= percent <= 100:
        raise UsageError(f"a percentage is 0 to 100, not {percent}")


class Active:
    """A fault that is switched on; as a context manager it ends with the block.

    Attributes:
        path: The pattern of paths, as :mod:`fnmatch` reads it.
        fault: What is wrong.
    """

    def __init__(self, faults: Faults, path: str, fault: Fault) -> None:
        self._faults = faults
        self.path = path
        self.fault = fault
        self._hits = 0

    @property
    def hits(self) -> int:
        """How many answers or connections it has spoilt."""
        return self._hits

    def hit(self) -> None:
        """Count one."""
        self._hits += 1

    def heal(self) -> None:
        """Switch it off; harmless if it is."""
        self._faults.remove(self)

    def __enter__(self) -> Active:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()


class Faults:
    """The faults of one server that are switched on; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[Active] = []

    def add(self, path: str, fault: Fault) -> Active:
        """Switch a fault on for paths that match ``path``."""
        active = Active(self, path, fault)
        with self._lock:
            self._active.append(active)
        return active

    def remove(self, active: Active) -> None:
        """Switch one off."""
        with self._lock:
            if active in self._active:
                self._active.remove(active)

    def heal(self) -> None:
        """Switch all of them off."""
        with self._lock:
            self._active.clear()

    def of_answer(self, path: str) -> tuple[Active, ...]:
        """Return the faults of an answer for a path, as they were switched on."""
        with self._lock:
            return tuple(
                each
                for each in self._active
                if isinstance(each.fault, OfAnswer) and fnmatch.fnmatchcase(path, each.path)
            )

    def of_connection(self) -> Active | None:
        """Return the last fault that concerns connections, if there is one."""
        with self._lock:
            return next(
                (each for each in reversed(self._active) if isinstance(each.fault, OfConnection)),
                None,
            )
