"""Failure scopes: a tree in which one failure ends every wait that has become pointless.

The nodes are a test, a cluster, a machine; threads wait on the leaves: a console, an SSH session,
QEMU's monitor, a service. A failure of one machine usually decides the whole test: a node that
waits for its leader waits in vain when the leader has panicked. So a failure travels up to the nearest
*boundary*, the test, and from there down to every leaf. The shape is that of trio's ``CancelScope``
(trio's reference manual, "Cancellation and timeouts"), on threads: a leaf ends its waits from any
thread.

::

    run (boundary)
    ├── module (boundary)        machines that the tests of a module share
    └── test (boundary)
        ├── update server        a service: a leaf
        └── cluster
            ├── machine a        leaves: console, SSH, QMP
            └── machine b

The first failure of a scope stays: it is the one that every later wait raises. A scope that was ended on
purpose, such as a machine that was stopped, ends its own waits only, and a failure that it reports
afterwards stays below it.

One lock guards a whole tree. It is never held while a leaf is called, because leaves take locks of their
own. So a leaf may call its scope, but not while it holds a lock that its own ``fail`` takes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from harness.errors import HarnessError


class Waits(Protocol):
    """Something that threads wait on."""

    def fail(self, error: HarnessError) -> None:
        """End all waits, present and later, with ``error``; callable from any thread, never blocks."""


class Scope:
    """A node of the tree of failures; a context manager whose exit closes it.

    All methods are safe from any thread.

    Args:
        name: The test, cluster or machine, for people: ``machine node-1``.
        parent: The scope that this one is part of; ``None`` for a root.
        boundary: Whether a failure below stays below: the parent goes on. A root is a boundary.
    """

    def __init__(self, name: str, parent: Scope | None = None, *, boundary: bool = False) -> None:
        self.name = name
        self.parent = parent
        self.boundary = boundary or parent is None
        self._lock: threading.Lock = threading.Lock() if parent is None else parent._lock
        self._failure: HarnessError | None = None
        self._over = False
        self._leaves: list[Waits] = []
        self._children: list[Scope] = []
        if parent is not None:
            with self._lock:
                # A closed parent keeps no children: nothing would remove them.
                if not parent._over:
                    parent._children.append(self)
                # A test that begins after its module's shared machine failed has not failed itself.
                self._failure = None if boundary else parent._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def failure(self) -> HarnessError | None:
        """The first failure, which every wait in this scope raises; ``None`` if there is none."""
        return self._failure

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if (failure := self._failure) is not None:
            # Each wait raises the same error: without this, one shows the frames of all before it.
            raise failure.with_traceback(None)

    def child(self, name: str, *, boundary: bool = False) -> Scope:
        """Return a new scope below this one."""
        return Scope(name, self, boundary=boundary)

    def add(self, leaf: Waits) -> None:
        """End the waits on ``leaf`` when this scope fails; at once if it has failed already."""
        with self._lock:
            self._leaves.append(leaf)
            failure = self._failure
        if failure is not None:
            leaf.fail(failure)

    def remove(self, leaf: Waits) -> None:
        """Leave ``leaf`` alone from now on; it may have been removed before."""
        with self._lock:
            self._leaves = [other for other in self._leaves if other is not leaf]

    @contextlib.contextmanager
    def alarm(self) -> Iterator[int]:
        """Yield a descriptor that hangs up when this scope fails, for waits by ``poll(2)``.

        It reports ``POLLHUP``; at once if the scope has failed before. :meth:`check` raises the failure.
        """
        alarm = _Alarm()
        try:
            self.add(alarm)
            yield alarm.descriptor
        finally:
            self.remove(alarm)
            alarm.close()

    def fail(self, error: HarnessError) -> None:
        """Fail the whole tree below the nearest boundary: every wait there ends with the failure.

        A scope below that has failed or ended before keeps its own failure. A scope that has ended or
        was closed fails alone.
        """
        with self._lock:
            top = self
            while not top.boundary and not top._over and top.parent is not None:
                top = top.parent
            leaves = top._spread(error)
        _end_waits(leaves, error)

    def end(self, error: HarnessError) -> None:
        """End the waits of this scope and of those below it; nothing above or beside it fails.

        For a part that is stopped on purpose: it cannot fail its parent any more.
        """
        with self._lock:
            self._over = True
            leaves = self._spread(error)
        _end_waits(leaves, error)

    def close(self) -> None:
        """Leave the tree: no failure travels between this scope and its parent any more."""
        with self._lock:
            self._over = True
            self._leaves = []
            if self.parent is not None:
                siblings = self.parent._children
                siblings[:] = [other for other in siblings if other is not self]

    def _spread(self, error: HarnessError) -> list[Waits]:
        """Set the failure here and below where there is none yet; return the leaves to tell.

        The lock is held. The leaves of a scope that had failed before are known to the thread that
        failed it.
        """
        leaves: list[Waits] = []
        pending = [self]
        while pending:
            scope = pending.pop()
            pending += scope._children
            if scope._failure is None:
                scope._failure = error
                leaves += scope._leaves
        return leaves


class _Alarm:
    """A leaf with a pipe, whose end to read hangs up when its end to write is closed (``pipe(7)``)."""

    def __init__(self) -> None:
        self.descriptor, self._there = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()

    def fail(self, error: HarnessError) -> None:
        """Let the descriptor hang up."""
        with self._lock:
            there, self._there = self._there, -1
        if there >= 0:
            os.close(there)

    def close(self) -> None:
        """Close both ends."""
        self.fail(HarnessError("closed"))
        os.close(self.descriptor)


def _end_waits(leaves: list[Waits], error: HarnessError) -> None:
    """Call ``fail`` of each leaf, also when that of another raises; raise the first such error."""
    broken: list[Exception] = []
    for leaf in leaves:
        try:
            leaf.fail(error)
        except Exception as fault:
            broken.append(fault)
    if broken:
        raise broken[0]
