"""Whether waiting still makes sense: what went wrong with a guest, and what a test expects to.

A failure has a place in the output. What the guest said before it still counts: a wait that is
satisfied by earlier output succeeds, however late the waiting thread gets to look. So the outcome
of a test depends on what the guest did, not on how its output was cut into chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.console.watch import Sighting
from harness.deadline import Deadline
from harness.errors import GuestError, OopsError, PanicError

_KEPT = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """Why waits end.

    Attributes:
        make: Makes the exception to raise, at the time it is raised.
        offset: Where in the output it happened.
        kind: The class of the exception.
        final: Whether nothing can come any more: the connection is closed.
    """

    make: Callable[[], BaseException]
    offset: int
    kind: type[BaseException]
    final: bool = False


class Expected:
    """What :meth:`Console.expecting` yields: the sightings of errors that the test provokes."""

    def __init__(self, condition: threading.Condition, kinds: tuple[type[GuestError], ...]) -> None:
        self._condition = condition
        self._kinds = kinds
        self.sightings: list[Sighting] = []

    def __bool__(self) -> bool:
        return bool(self.sightings)

    def _offer(self, sighting: Sighting) -> bool:
        if not issubclass(sighting.watcher.error, self._kinds):
            return False
        if len(self.sightings) < _KEPT:
            self.sightings.append(sighting)
        return True

    def wait(self, deadline: Deadline) -> Sighting | None:
        """Wait until the first of them is seen; return it, or ``None`` at the deadline."""
        with self._condition:
            self._condition.wait_for(lambda: self.sightings, _timeout(deadline))
            return self.sightings[0] if self.sightings else None


def _timeout(deadline: Deadline) -> float | None:
    # A lock cannot be waited for longer than this many seconds.
    timeout = deadline.timeout()
    return None if timeout is None else min(timeout, threading.TIMEOUT_MAX)


class Failures:
    """The failure of one console, if any. All methods are safe from any thread.

    Args:
        condition: Notified when something changes; shared with the waits for output.
        explain: Makes the exception for a sighting.
    """

    def __init__(
        self, condition: threading.Condition, explain: Callable[[Sighting], BaseException]
    ) -> None:
        self._condition = condition
        self._explain = explain
        self._expected: list[Expected] = []
        self._ignored: set[type[GuestError]] = set()
        self.current: Failure | None = None
        self.sightings: list[Sighting] = []

    def saw(self, sighting: Sighting) -> bool:
        """Take a sighting of a watcher; return whether it is a failure."""
        with self._condition:
            if len(self.sightings) < _KEPT:
                self.sightings.append(sighting)
            self._condition.notify_all()
            kind = sighting.watcher.error
            # The newest scope knows best what it provokes; each of them gets to see it.
            if [scope for scope in self._expected if scope._offer(sighting)]:
                return False
            if issubclass(kind, tuple(self._ignored)):
                return False
            return self.set(Failure(lambda: self._explain(sighting), sighting.offset, kind))

    def set(self, failure: Failure) -> bool:
        """Make it the failure, unless there is one that says more; return whether it is now."""
        with self._condition:
            old = self.current
            # The first cause stays. But an oops is often only how a panic begins, and a closed
            # connection says less than whoever knows why.
            better = (
                old is None
                or (issubclass(old.kind, OopsError) and issubclass(failure.kind, PanicError))
                or (old.final and not failure.final)
            )
            if better:
                if old is not None:
                    failure = Failure(
                        failure.make,
                        min(old.offset, failure.offset),
                        failure.kind,
                        old.final or failure.final,
                    )
                self.current = failure
                self._condition.notify_all()
            return better

    def clear(self) -> list[Sighting]:
        """Forget the failure, unless the connection is closed; return all sightings so far."""
        with self._condition:
            if self.current is not None and not self.current.final:
                self.current = None
            seen, self.sightings = self.sightings, []
            return seen

    def ignore(self, *kinds: type[GuestError]) -> None:
        """Let these errors pass from now on; they are recorded all the same."""
        with self._condition:
            self._ignored.update(kinds)

    @contextmanager
    def expecting(self, *kinds: type[GuestError]) -> Iterator[Expected]:
        """Within the scope, let these errors pass and collect them."""
        scope = Expected(self._condition, kinds)
        with self._condition:
            self._expected.append(scope)
        try:
            yield scope
        finally:
            with self._condition:
                self._expected.remove(scope)
