"""Concurrent clients that write and read while a test breaks things."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from harness.cluster.history import History
from harness.cluster.operation import Kind, Outcome
from harness.cluster.provider import Store
from harness.deadline import UNSCALED, Limit, Scale
from harness.errors import (
    HarnessError,
    OperationRefusedError,
    OutcomeUnknownError,
    ProviderError,
    UsageError,
    WaitTimeoutError,
)
from harness.scope import Scope

_END: Final = 60.0
"""Seconds that the last operation of each client may take; a provider's own deadline is shorter."""


class Clients:
    """Threads that write and read until they are stopped; a context manager whose exit stops them.

    ::

        history = History(lab.folder / "history.jsonl")
        with Clients(stores, history, lab.scope, seed=7) as clients:
            clients.wait_acknowledged(50)
            leader.power_cut()
            clients.wait_acknowledged(50)
        history.check()

    What a client does is decided by the seed: the same seed gives each client the same operations in the
    same order, and each write of a history another value. When they overlap is not: threads and the
    cluster decide that.

    When they stop, the last one reads each key from each store that answers: the last acknowledged write
    of a key has to be there.

    A refusal and a missing answer are outcomes. Any other error of the store fails the scope: the test
    ends at once. A scope that fails stops the clients.

    Args:
        stores: What they write to and read from, such as one for each member. They take turns: the first
            client has the first one.
        history: Where each operation is recorded.
        scope: The failure scope of the cluster.
        seed: Decides the operations, and is part of each value.
        count: The number of clients.
        keys: The registers. More operations at once on a key find more; fewer are decided faster.
        rate: Operations a second of each client, at most, on a good host. Where the cluster takes longer
            by ``scale``, they are as many times fewer: members that have to be emulated would do little
            else.
        reads: The share of reads, from 0 to 1.
        scale: How much longer the cluster takes than on a good host.

    Raises:
        UsageError: A number is out of its range, or there is no key or no store.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        history: History,
        scope: Scope,
        *,
        seed: int,
        count: int = 5,
        keys: Sequence[str] = ("a", "b", "c"),
        rate: float = 10.0,
        reads: float = 0.5,
        scale: Scale = UNSCALED,
    ) -> None:
        if count < 1 or not keys or not stores or not rate > 0 or not 0 <= reads <= 1:
            raise UsageError(
                f"clients need count >= 1, a key, a store, rate > 0 and reads from 0 to 1, and not "
                f"{count}, {list(keys)}, {len(stores)} stores, {rate:g} and {reads:g}"
            )
        self._history = history
        self._scope = scope.child(f"clients {seed}")
        self._seed = seed
        self._keys = tuple(keys)
        self._rate = rate / scale.factor
        self._reads = reads
        self._scale = scale
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._acknowledged = 0
        self._running: set[str] = set()
        self._working = count
        self._names = [f"c{number}" for number in range(count)]
        self._stores = tuple(stores)

    def __enter__(self) -> Self:
        self._scope.add(self)
        self._running |= set(self._names)
        for name, store in zip(self._names, itertools.cycle(self._stores), strict=False):
            threading.Thread(
                target=self._run, args=(name, store), name=f"client {name}", daemon=True
            ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.stop()
            else:
                # The block's own error is the one to show.
                with contextlib.suppress(HarnessError):
                    self.stop()
        finally:
            self._scope.remove(self)
            self._scope.close()

    def wait_acknowledged(self, count: int, deadline: Limit = None) -> None:
        """Wait until the cluster has acknowledged a number of further operations.

        Args:
            count: The number, from now on.
            deadline: 60 s by default.

        Raises:
            WaitTimeoutError: It has not.
            HarnessError: The failure of the scope.
        """
        limit = self._scale.limit(deadline, 60.0)
        with self._changed:
            goal = self._acknowledged + count

            def settled() -> bool:
                return self._acknowledged >= goal or self._scope.failure is not None

            limit.wait(lambda seconds: self._changed.wait_for(settled, seconds))
            missing = goal - self._acknowledged
        self._scope.check()
        if missing > 0:
            raise WaitTimeoutError(
                f"{count} acknowledged operations of the clients ({count - missing} came)",
                limit,
                evidence=str(self._history.path or ""),
            )

    def stop(self, deadline: Limit = None) -> None:
        """Stop the clients and wait for their last operations; does nothing the second time.

        When the scope fails, nothing is waited for: each operation ends by itself.

        Args:
            deadline: 60 s by default.

        Raises:
            WaitTimeoutError: An operation did not end; its outcome is unknown.
            HarnessError: The failure of the scope.
        """
        limit = self._scale.limit(deadline, _END)
        self._stopped.set()
        with self._changed:
            limit.wait(
                lambda seconds: self._changed.wait_for(
                    lambda: not self._running or self._scope.failure is not None, seconds
                )
            )
            running = sorted(self._running)
        self._scope.check()
        if running:
            raise WaitTimeoutError(f"the last operation of {', '.join(running)}", limit)

    def fail(self, error: HarnessError) -> None:
        """Stop the clients, and end the waits for them: the scope has failed."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self, client: str, store: Store) -> None:
        try:
            self._work(client, store)
            if self._is_last():
                self._read_all(client)
        except HarnessError as error:
            self._scope.fail(error)
        except Exception as error:
            failure = ProviderError(
                f"client {client}: the store raised {type(error).__name__}: {error}",
                hint="a store raises OperationRefusedError or OutcomeUnknownError, or an error of "
                "Harness that ends the test",
            )
            failure.__cause__ = error
            self._scope.fail(failure)
        finally:
            with self._changed:
                self._running.discard(client)
                self._changed.notify_all()

    def _work(self, client: str, store: Store) -> None:
        chance = random.Random(f"{self._seed}/{client}")
        number = 0
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            # A slow operation is not made up for: the rate is a limit.
            due = time.monotonic() + chance.uniform(0.5, 1.5) / self._rate
            key = chance.choice(self._keys)
            if chance.random() < self._reads:
                self._operate(client, store, Kind.READ, key)
            else:
                value = f"s{self._seed}-{client}-{number}"
                self._operate(client, store, Kind.WRITE, key, value)
                number += 1

    def _is_last(self) -> bool:
        with self._changed:
            self._working -= 1
            return self._working == 0

    def _read_all(self, client: str) -> None:
        for store in self._stores:
            for key in self._keys:
                if self._scope.failure is not None:
                    return
                # A member that is down would take its time for each key.
                if self._operate(client, store, Kind.READ, key) is not Outcome.OK:
                    break

    def _operate(
        self, client: str, store: Store, kind: Kind, key: str, value: str | None = None
    ) -> Outcome:
        outcome = Outcome.UNKNOWN
        number = self._history.begin(client, kind, key, value)
        try:
            if value is None:
                value = store.read(key)
            else:
                store.write(key, value)
            outcome = Outcome.OK
        except OperationRefusedError:
            outcome = Outcome.FAILED
        except OutcomeUnknownError:
            pass
        finally:
            self._history.end(number, outcome, value)
        if outcome is Outcome.OK:
            with self._changed:
                self._acknowledged += 1
                self._changed.notify_all()
        return outcome
