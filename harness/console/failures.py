"""The failure that ends the waits on one console, and the errors that a test expects.

A failure has a position in the output. A wait that earlier output satisfies succeeds, no matter how
late its thread looks. So the outcome of a test depends on the guest alone, not on how its output
was split into chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from harness.console.watch import Sighting
from harness.deadline import UNSCALED, Limit, Scale
from harness.errors import GuestError, OopsError, PanicError

_KEPT: Final = 100
"""Sightings that are recorded at most."""

_EXPECTED_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why waits end.

    Attributes:
        build: Returns the exception, each time that it is raised: its evidence is the output then.
        offset: The position of the failure in the output.
        kind: The class of the exception.
        final: Whether the connection is closed, so that no more output can arrive.
    """

    build: Callable[[], BaseException]
    offset: int
    kind: type[BaseException]
    final: bool = False


class Expected:
    """The errors that a test causes on purpose; :meth:`Console.expecting` yields it.

    It is true once an error was seen.

    Attributes:
        sightings: The expected errors that were seen; at most 100.
    """

    def __init__(
        self, failures: Failures, kinds: tuple[type[GuestError], ...], scale: Scale
    ) -> None:
        self._failures = failures
        self._kinds = kinds
        self._scale = scale
        self.sightings: list[Sighting] = []

    def __bool__(self) -> bool:
        return bool(self.sightings)

    def _offer(self, sighting: Sighting) -> bool:
        error = sighting.watcher.error
        if error is None or not issubclass(error, self._kinds):
            return False
        if len(self.sightings) < _KEPT:
            self.sightings.append(sighting)
        return True

    def wait(self, deadline: Limit = None) -> Sighting | None:
        """Wait until an expected error is seen; return the first, or ``None`` at the deadline.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            HarnessError: The console failed in another way, and no expected error was seen.
        """
        limit = self._scale.limit(deadline, _EXPECTED_SECONDS)
        failures = self._failures
        with failures.condition:
            limit.wait(
                lambda left: failures.condition.wait_for(
                    lambda: self.sightings or failures.current is not None, left
                )
            )
            if self.sightings:
                return self.sightings[0]
        failures.check()
        return None


class Failures:
    """The failure of one console and the sightings of its watchers; safe from any thread.

    Args:
        condition: Notified of each change; shared with the waits for output.
        explain: Returns the exception for a sighting, and for the excuse that the host is.
        excuse: Returns why the host may be the cause of a failure by time; empty if it is not.
        scale: The scale of the machine's deadlines.

    Attributes:
        current: The failure; ``None`` if there is none.
        sightings: The sightings since the last :meth:`clear`; at most 100.
    """

    def __init__(
        self,
        condition: threading.Condition,
        explain: Callable[[Sighting, str], BaseException],
        excuse: Callable[[], str],
        scale: Scale = UNSCALED,
    ) -> None:
        self.condition = condition
        self._explain = explain
        self._excuse = excuse
        self._scale = scale
        self._expected: list[Expected] = []
        self._ignored: set[type[GuestError]] = set()
        self.current: Failure | None = None
        self.sightings: list[Sighting] = []

    def add(self, sighting: Sighting) -> bool:
        """Record a sighting of a watcher; return whether it became the failure.

        A complaint is no failure, and is not recorded here.
        """
        kind = sighting.watcher.error
        if kind is None:
            return False
        with self.condition:
            if len(self.sightings) < _KEPT:
                self.sightings.append(sighting)
            self.condition.notify_all()
            # A list, not any(): every open block records the sighting.
            if [block for block in self._expected if block._offer(sighting)]:
                return False
            if issubclass(kind, tuple(self._ignored)):
                return False
            # Now, not when it is raised: by then the load may have come or gone.
            excuse = self._excuse() if kind.by_time else ""
            return self.set(Failure(lambda: self._explain(sighting, excuse), sighting.offset, kind))

    def set(self, failure: Failure) -> bool:
        """Set the failure; return whether it took effect.

        The first failure stays, with two exceptions: a panic replaces an oops, because a panic
        often begins with one, and any failure replaces the end of the connection, because it says
        why the connection ended.
        """
        with self.condition:
            old = self.current
            better = (
                old is None
                or (issubclass(old.kind, OopsError) and issubclass(failure.kind, PanicError))
                or (old.final and not failure.final)
            )
            if better:
                if old is not None:
                    failure = Failure(
                        failure.build,
                        min(old.offset, failure.offset),
                        failure.kind,
                        old.final or failure.final,
                    )
                self.current = failure
                self.condition.notify_all()
            return better

    def check(self) -> None:
        """Raise the failure, if there is one."""
        failure = self.current
        if failure is not None:
            error = failure.build()
            raise error.with_traceback(None)

    def clear(self) -> list[Sighting]:
        """Clear the failure, unless the connection is closed; return all sightings so far."""
        with self.condition:
            if self.current is not None and not self.current.final:
                self.current = None
            sightings, self.sightings = self.sightings, []
            return sightings

    def ignore(self, *kinds: type[GuestError]) -> None:
        """From now on, record errors of these kinds instead of failing."""
        with self.condition:
            self._ignored.update(kinds)

    @contextmanager
    def expecting(self, *kinds: type[GuestError]) -> Iterator[Expected]:
        """Within the block, record errors of these kinds instead of failing."""
        block = Expected(self, kinds, self._scale)
        with self.condition:
            self._expected.append(block)
        try:
            yield block
        finally:
            with self.condition:
                self._expected.remove(block)
