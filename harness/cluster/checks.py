"""Finds what a history proves against a cluster: lost writes, stale reads, contradictions.

The value of each write is written once, so a read says which write it saw. That makes the common faults
plain to find and to explain, in linear time, before the search for everything else:

1. **A value from nowhere**: no client wrote it, or its write was refused, or began after the read.
2. **A lost acknowledged write, or a stale read**: a read returned a value although a newer one had been
   acknowledged before the read began. Newer means that its write began when the older value had been
   written for certain. The write is lost if no later read returned it; if one did, the read was stale.
   Where the next write follows at once, a stale read counts as a loss: no later read shows the newer
   value.
3. **Reads that go backwards**: as above, but the newer value was not acknowledged: a read saw it.
4. **Anything else that is not linearizable**: :mod:`harness.cluster.linearizability` decides, and
   :mod:`harness.cluster.shrink` finds the few operations that contradict each other.

Each key is examined by itself and reports its first violation. A key that the search cannot decide is
reported as undecided, and never as fine.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from harness.cluster.drawing import draw, seconds, short, short_name
from harness.cluster.linearizability import MOST_CONFIGURATIONS, decide
from harness.cluster.operation import Kind, Operation, Outcome
from harness.cluster.shrink import shrink
from harness.errors import UsageError

_MOST_LISTED: Final = 5
"""The keys with further violations that a message lists; the others are counted."""


class Fault(StrEnum):
    """The faults of a cluster."""

    NOWHERE = "value from nowhere"
    LOST = "lost acknowledged write"
    STALE = "stale read"
    BACKWARDS = "reads that go backwards"
    CONTRADICTION = "not linearizable"


@dataclass(frozen=True, slots=True)
class Violation:
    """A fault on one key, and the operations that prove it.

    Attributes:
        fault: The fault.
        key: The key.
        operations: The proof, in the order of time; no order of these operations explains their results.
        account: The proof in words, one event a line.
        reads: How many reads of this key have the same fault.
    """

    fault: Fault
    key: str
    operations: tuple[Operation, ...]
    account: tuple[str, ...]
    reads: int = 1

    def __str__(self) -> str:
        more = f" ({self.reads} such reads)" if self.reads > 1 else ""
        lines = [
            f"{self.fault}: key {short(self.key)}{more}",
            *self.account,
            *draw(self.operations),
        ]
        return "\n  ".join(lines)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the operations of a history prove.

    Attributes:
        violations: The first violation of each key that has one, in the order of time.
        undecided: The keys for which the search ended without an answer.
    """

    violations: tuple[Violation, ...]
    undecided: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        if self.violations:
            first, *others = self.violations
            lines = [str(first)]
            lines += [
                f"also {other.fault}: key {short(other.key)}" for other in others[:_MOST_LISTED]
            ]
            if len(others) > _MOST_LISTED:
                lines.append(f"also {len(others) - _MOST_LISTED} more keys")
        if self.undecided:
            keys = ", ".join(map(short, self.undecided[:_MOST_LISTED]))
            more = len(self.undecided) - _MOST_LISTED
            lines.append(f"undecided: {keys}" + (f" and {more} more keys" if more > 0 else ""))
        return "\n".join(lines)


def examine(operations: Iterable[Operation], *, most: int = MOST_CONFIGURATIONS) -> Findings:
    """Examine a history whose keys have no value before it.

    Args:
        operations: All operations; each value of a key is written once.
        most: The configurations after which the search on a key ends without an answer.

    Raises:
        UsageError: A value of a key is written twice.
    """
    keys: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        keys[operation.key].append(operation)
    violations, undecided = [], []
    for key, on_key in sorted(keys.items()):
        register = _Register(key, on_key)
        violation = register.from_nowhere() or register.outdated()
        if violation is None:
            linearizable = decide(on_key, most=most).linearizable
            if linearizable is None:
                undecided.append(key)
            elif not linearizable:
                violation = register.contradiction()
        if violation is not None:
            violations.append(violation)
    violations.sort(key=lambda violation: violation.operations[-1].start)
    return Findings(tuple(violations), tuple(undecided))


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of a register.

    Attributes:
        write: Its write; ``None`` for the value before all writes.
        witness: The operation whose end proves that the value has been in the register: its write, or
            the read of it that ended first.
    """

    write: Operation | None
    witness: Operation | None

    @property
    def begins(self) -> float:
        """The time before which the register cannot have it."""
        return self.write.start if self.write else -math.inf

    @property
    def present_by(self) -> float:
        """The time by which the register has had it."""
        return self.witness.done_by if self.witness else -math.inf

    def proof(self, before: float = math.inf) -> list[Operation]:
        """Return the operations that show that the register has had it, before a time."""
        if self.write is not None and self.write.done_by < before:
            return [self.write]
        return [op for op in (self.write, self.witness) if op is not None]


class _Index:
    """Finds the value that began last, among those that were present before a moment."""

    def __init__(self, values: Iterable[_Value]) -> None:
        ordered = sorted(values, key=lambda value: value.present_by)
        self._present = [value.present_by for value in ordered]
        self._newest: list[_Value] = []
        for value in ordered:
            last = self._newest[-1] if self._newest else value
            self._newest.append(max(last, value, key=lambda each: each.begins))

    def newest(self, moment: float) -> _Value | None:
        """Return it; ``None`` if no value was present."""
        place = bisect.bisect_left(self._present, moment)
        return self._newest[place - 1] if place else None


class _Register:
    """The operations on one key."""

    def __init__(self, key: str, operations: Sequence[Operation]) -> None:
        self.key = key
        self.operations = operations
        self.reads = sorted(
            (op for op in operations if op.kind is Kind.READ and op.acknowledged),
            key=lambda op: op.done_by,
        )
        self.writes: dict[str | None, Operation] = {}
        for op in operations:
            if op.kind is Kind.WRITE and self.writes.setdefault(op.value, op) is not op:
                raise UsageError(
                    f"key {short(key)}: the value {short(op.value)} is written twice",
                    hint="each write of a history needs a value of its own: give each group of "
                    "clients another seed",
                )

    def from_nowhere(self) -> Violation | None:
        """Return the first read of a value that was not written before the read ended."""
        unexplained: list[tuple[Operation, str]] = []
        for read in self.reads:
            if read.value is None:
                continue
            write = self.writes.get(read.value)
            if write is None:
                unexplained.append((read, "no client wrote it"))
            elif write.outcome is Outcome.FAILED:
                unexplained.append((read, f"{short_name(write.client)}'s write of it was refused"))
            elif read.before(write):
                when = seconds(write.start)
                unexplained.append(
                    (read, f"{short_name(write.client)} began to write it at {when}")
                )
        if not unexplained:
            return None
        read, why = unexplained[0]
        proof = [op for op in (self.writes.get(read.value), read) if op is not None]
        account = [_had_read(read), why]
        return self._violation(Fault.NOWHERE, proof, account, len(unexplained))

    def outdated(self) -> Violation | None:
        """Return the first read of a value that a newer one had replaced before the read began."""
        values = self._values()
        acknowledged = _Index(
            _Value(value.write, value.write)
            for value in values.values()
            if value.write is not None and value.write.acknowledged
        )
        present = _Index(values.values())
        stale = []
        for read in self.reads:
            older = values[read.value]
            for index in (acknowledged, present):
                newer = index.newest(read.start)
                if newer is not None and newer.begins > older.present_by:
                    stale.append((read, older, newer))
                    break
        if not stale:
            return None
        read, older, newer = stale[0]
        write = newer.write
        assert write is not None, "the value before all writes is newer than none"
        proof = [*older.proof(newer.begins), *newer.proof(read.start), read]
        what = short(read.value) if read.value is None else f"the older {short(read.value)}"
        later = f"then {short_name(read.client)} read {what} at {seconds(read.start)}"
        if not write.before(read):
            account = [_had_read(newer.proof(read.start)[-1]), later]
            return self._violation(Fault.BACKWARDS, proof, account, len(stale))
        value = short(write.value)
        written = (
            f"{short_name(write.client)} wrote {value}, acknowledged at {seconds(write.done_by)}"
        )
        again = next(
            (op for op in self.reads if op.value == write.value and op.start > read.start), None
        )
        if again is None:
            account = [written, later, f"no later read returned {value}"]
            return self._violation(Fault.LOST, proof, account, len(stale))
        account = [written, later, f"{_had_read(again)} again"]
        return self._violation(Fault.STALE, [*proof, again], account, len(stale))

    def contradiction(self) -> Violation:
        """Return the few operations because of which the history is not linearizable."""
        proof = shrink(self.operations)
        account = ["no order of these operations explains what the reads returned"]
        return self._violation(Fault.CONTRADICTION, proof, account)

    def _values(self) -> dict[str | None, _Value]:
        """Return the values of the register: all that a read returned, and all acknowledged ones."""
        first_read: dict[str | None, Operation] = {}
        for read in self.reads:
            first_read.setdefault(read.value, read)
        values: dict[str | None, _Value] = {None: _Value(None, None)}
        for value, write in self.writes.items():
            witnesses = [op for op in (write, first_read.get(value)) if op and op.acknowledged]
            if witnesses:
                values[value] = _Value(write, min(witnesses, key=lambda op: op.done_by))
        return values

    def _violation(
        self, fault: Fault, proof: Iterable[Operation], account: Iterable[str], reads: int = 1
    ) -> Violation:
        ordered = sorted(dict.fromkeys(proof), key=lambda op: (op.start, op.done_by))
        return Violation(fault, self.key, tuple(ordered), tuple(account), reads)


def _had_read(read: Operation) -> str:
    return f"by {seconds(read.done_by)}, {short_name(read.client)} had read {short(read.value)}"
