"""Faults of a server, which a test switches on for paths or for connections.

A fault of answers alters the real server's answer on its way to the guest. A fault of connections
(:class:`ExpiredCertificate`, :class:`UnknownCa`) has no path: TLS fails before the client sends one.
"""

from __future__ import annotations

import fnmatch
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from harness.errors import UsageError


@dataclass(frozen=True, slots=True)
class Slow:
    """The body arrives at a limited rate.

    Attributes:
        rate: Bytes a second, from 1.
    """

    rate: int

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise UsageError(f"Slow.rate must be >= 1 byte a second, not {self.rate}")


@dataclass(frozen=True, slots=True)
class CutOff:
    """The connection closes after a part of the body, although the whole length was announced.

    Attributes:
        percent: The part of the body that arrives, 0 to 100.
    """

    percent: float

    def __post_init__(self) -> None:
        _check_percent("CutOff", self.percent)

    def kept(self, length: int) -> int:
        """Return the number of bytes that arrive: fewer than ``length``, unless that is 0."""
        return min(int(length * self.percent / 100), max(0, length - 1))


@dataclass(frozen=True, slots=True)
class ServerError:
    """The server answers with an error, whether or not the path exists.

    Attributes:
        status: 500 to 599.
    """

    status: int = 500

    def __post_init__(self) -> None:
        if not 500 <= self.status <= 599:
            raise UsageError(f"ServerError.status must be 500 to 599, not {self.status}")


@dataclass(frozen=True, slots=True)
class WrongLength:
    """``Content-Length`` is wrong; the body is right, and the connection closes after it.

    Attributes:
        by: The bytes that the header adds to the real length; negative to subtract.
    """

    by: int

    def __post_init__(self) -> None:
        if not self.by:
            raise UsageError("WrongLength(by=0) would change nothing")


@dataclass(frozen=True, slots=True)
class FlippedBit:
    """One bit of the body is flipped; the length is right.

    Attributes:
        offset: The byte, from the file's beginning, or from its end if negative.
        percent: The place of the byte in the file, 0 to 100, in place of ``offset``. Without either it
            is the byte in the middle.
        bit: The bit of the byte, 0 the lowest.
    """

    offset: int | None = None
    percent: float | None = None
    bit: int = 0

    def __post_init__(self) -> None:
        if self.offset is not None and self.percent is not None:
            raise UsageError("FlippedBit takes an offset or a percent, not both")
        if self.percent is not None:
            _check_percent("FlippedBit", self.percent)
        if not 0 <= self.bit <= 7:
            raise UsageError(f"FlippedBit.bit must be 0 to 7, not {self.bit}")

    def where(self, length: int) -> int:
        """Return the byte's index in a file of ``length`` bytes; it may lie outside the file."""
        if self.offset is not None:
            return self.offset if self.offset >= 0 else length + self.offset
        percent = 50.0 if self.percent is None else self.percent
        return min(int(length * percent / 100), max(0, length - 1))


@dataclass(frozen=True, slots=True)
class ExpiredCertificate:
    """The server shows a certificate of the run's CA that expired yesterday."""


@dataclass(frozen=True, slots=True)
class UnknownCa:
    """The server shows a certificate of a CA that no guest trusts."""


AnswerFault = Slow | CutOff | ServerError | WrongLength | FlippedBit
ConnectionFault = ExpiredCertificate | UnknownCa
Fault = AnswerFault | ConnectionFault


def _check_percent(fault: str, percent: float) -> None:
    if not 0 <= percent <= 100:
        raise UsageError(f"{fault}.percent must be 0 to 100, not {percent}")


class ActiveFault:
    """A fault that is switched on; as a context manager it ends with the block.

    Attributes:
        path: The pattern of paths, as :mod:`fnmatch` reads it.
        fault: The fault.
    """

    def __init__(self, faults: Faults, path: str, fault: Fault) -> None:
        self._faults = faults
        self.path = path
        self.fault = fault
        self._hits = 0

    @property
    def hits(self) -> int:
        """The number of answers or connections that it altered."""
        return self._hits

    def hit(self) -> None:
        """Count an answer or a connection."""
        self._hits += 1

    def heal(self) -> None:
        """Switch the fault off; does nothing if it is off."""
        self._faults.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()


class Faults:
    """The active faults of one server; all methods are safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[ActiveFault] = []

    def add(self, path: str, fault: Fault) -> ActiveFault:
        """Switch a fault on for paths that match the pattern ``path``."""
        active = ActiveFault(self, path, fault)
        with self._lock:
            self._active.append(active)
        return active

    def remove(self, active: ActiveFault) -> None:
        """Switch a fault off; does nothing if it is off."""
        with self._lock:
            if active in self._active:
                self._active.remove(active)

    def heal(self) -> None:
        """Switch all faults off."""
        with self._lock:
            self._active.clear()

    def of_answer(self, path: str) -> tuple[ActiveFault, ...]:
        """Return the faults of answers for a path, in the order in which they were switched on."""
        with self._lock:
            return tuple(
                active
                for active in self._active
                if isinstance(active.fault, AnswerFault) and fnmatch.fnmatchcase(path, active.path)
            )

    def of_connection(self) -> ActiveFault | None:
        """Return the fault of connections that was switched on last, or ``None``."""
        with self._lock:
            return next(
                (
                    active
                    for active in reversed(self._active)
                    if isinstance(active.fault, ConnectionFault)
                ),
                None,
            )
