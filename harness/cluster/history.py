"""The history of a cluster: what its clients asked of it, what it answered, and when."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.cluster.checks import Findings, examine
from harness.cluster.linearizability import MOST_CONFIGURATIONS
from harness.cluster.operation import Kind, Operation, Outcome
from harness.errors import HistoryError, HistoryUndecidedError, UsageError

_MICROSECONDS: Final = 1_000_000


class History:
    """The operations of concurrent clients, in memory and in a file.

    All methods are safe from any thread. The file has two JSON objects for each operation, each on a
    line of its own, written as it begins and as it ends: a killed run keeps all of them. An operation
    without an end has an unknown outcome::

        {"id": 0, "client": "c1", "key": "a", "kind": "write", "value": "s1-c1-0", "start": 0.01}
        {"id": 0, "end": 0.0214, "outcome": "ok"}

    Times are seconds on one monotonic clock, which begins with the history. A start is rounded down to a
    microsecond and an end up, so rounding accuses no cluster.

    Args:
        path: The file, by custom ``history.jsonl`` in the folder of the test; ``None`` for none.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._records = path is not None
        if path is not None:
            path.write_bytes(b"")
        self._lock = threading.Lock()
        self._operations: list[Operation] = []
        self._written: set[tuple[str, str | None]] = set()
        self._listeners: list[Callable[[Operation], None]] = []
        self._zero = time.monotonic()

    @classmethod
    def load(cls, path: Path) -> History:
        """Return the history in a file; a last line that is not complete is left out.

        Raises:
            OSError: The file cannot be read.
            UsageError: The file holds something else.
        """
        history = cls()
        *lines, _incomplete = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                history._add(json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise UsageError(
                    f"{path}:{number}: no operation of a history: {error}",
                    hint="name the history.jsonl of a run's evidence",
                ) from None
        history.path = path
        return history

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations so far, in the order in which they began."""
        with self._lock:
            return tuple(self._operations)

    def begin(self, client: str, kind: Kind, key: str, value: str | None = None) -> int:
        """Record an operation that is about to be called; return its number.

        Args:
            client: The name of the client.
            kind: Whether it writes or reads.
            key: The register.
            value: What it writes; each write of a key has another value.

        Raises:
            UsageError: The value has been written to this key before.
        """
        with self._lock:
            if kind is Kind.WRITE:
                if (key, value) in self._written:
                    raise UsageError(
                        f"key {key!r}: the value {value!r} is written twice in one history",
                        hint="give each group of clients another seed",
                    )
                self._written.add((key, value))
            start = math.floor((time.monotonic() - self._zero) * _MICROSECONDS) / _MICROSECONDS
            operation = Operation(client, key, kind, value, start)
            number = len(self._operations)
            self._operations.append(operation)
            fields = {"client": client, "key": key, "kind": kind, "value": value, "start": start}
            self._write({"id": number, **fields})
        return number

    def end(self, number: int, outcome: Outcome, value: str | None = None) -> None:
        """Record that an operation has returned.

        Args:
            number: Its number.
            outcome: What the client knows of its effect.
            value: What a read returned.
        """
        # Before the lock: to wait for it is no part of the operation.
        now = time.monotonic()
        end = math.ceil((now - self._zero) * _MICROSECONDS) / _MICROSECONDS
        with self._lock:
            operation = replace(self._operations[number], end=end, outcome=outcome)
            fields: dict[str, Any] = {"id": number, "end": end, "outcome": outcome}
            if operation.kind is Kind.READ:
                operation = replace(operation, value=value)
                fields["value"] = value
            self._operations[number] = operation
            self._write(fields)

    def examine(self, *, most: int = MOST_CONFIGURATIONS) -> Findings:
        """Return what the operations so far prove: :func:`harness.cluster.checks.examine`."""
        return examine(self.operations, most=most)

    def check(self, *, most: int = MOST_CONFIGURATIONS) -> None:
        """Check that no acknowledged write was lost, no read was stale, and each key is linearizable.

        Call it when the clients have stopped. An operation that has not ended has an unknown outcome.

        Args:
            most: The configurations after which the search on a key ends without an answer.

        Raises:
            UsageError: No write or no read was acknowledged, so the history proves nothing.
            HistoryError: The operations contradict each other.
            HistoryUndecidedError: They do not as far as the search went, but it ended without an answer.
        """
        operations = self.operations
        evidence = "" if self.path is None else str(self.path)
        if missing := set(Kind) - {op.kind for op in operations if op.acknowledged}:
            raise UsageError(
                f"the history proves nothing: of {len(operations)} operations, no "
                f"{' and no '.join(sorted(missing))} was acknowledged",
                evidence=evidence,
                hint="wait for some while the clients run: clients.wait_acknowledged(50)",
            )
        findings = examine(operations, most=most)
        if findings.violations:
            count = len(findings.violations)
            keys = "1 key" if count == 1 else f"{count} keys"
            raise HistoryError(
                f"the cluster broke its promise on {keys}\n{findings}",
                evidence=evidence,
                hint="the bars show the order of calls and returns; look at the logs of the members "
                "at those times",
            )
        if findings.undecided:
            raise HistoryUndecidedError(
                f"the search ended after {most} configurations without an answer\n{findings}",
                evidence=evidence,
                hint="too many operations on one key were under way at the same time: use more keys, "
                "fewer clients or a lower rate",
            )

    def _write(self, fields: dict[str, Any]) -> None:
        if self.path is not None and self._records:
            # A full disk must not end the clients: the check needs what is in memory.
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")

    def _add(self, fields: dict[str, Any]) -> None:
        """Add what one line of a file says."""
        number = fields.pop("id")
        if number == len(self._operations):
            self._operations.append(jsonfile.parse(Operation, fields))
        elif 0 <= number < len(self._operations):
            begun = jsonfile.dump(self._operations[number])
            self._operations[number] = jsonfile.parse(Operation, begun | fields)
        else:
            raise ValueError(f"operation {number} ends before it begins")
