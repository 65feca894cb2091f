"""Shrinks a history that is not linearizable to the few operations that contradict each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, TypeVar

from harness.cluster.linearizability import MOST_CONFIGURATIONS, decide
from harness.cluster.operation import Kind, Operation

MOST_EFFORT: Final = 2 * MOST_CONFIGURATIONS
"""The configurations that all searches of one shrinking may visit together."""

T = TypeVar("T")


def shrink(operations: Sequence[Operation], *, effort: int = MOST_EFFORT) -> list[Operation]:
    """Return the smallest part that is found and is not linearizable either, in the order of time.

    A write is removed together with all reads of its value, so that no read is left that returns a value
    from nowhere: what remains of a linearizable history is linearizable. So each part that is not proves
    that the whole is not.

    Args:
        operations: The operations on one key, not linearizable; each value is written once.
        effort: The configurations to visit at most. When they are used up, the smallest part so far is
            returned.
    """
    left = effort

    def contradicts(part: Sequence[Operation]) -> bool:
        nonlocal left
        if left <= 0:  # To prepare a search costs time, too.
            return False
        decision = decide(part, most=min(left, MOST_CONFIGURATIONS))
        left -= max(decision.configurations, 1)
        return decision.linearizable is False

    def with_writes(writes: list[Operation], reads: Sequence[Operation]) -> bool:
        return contradicts([*writes, *reads])

    part = sorted(operations, key=lambda op: op.start)
    size = len(part) + 1
    while len(part) < size:
        size = len(part)
        groups = _without(_by_value(part), lambda kept: contradicts(list(chain(*kept))))
        part = sorted(chain(*groups), key=lambda op: op.start)
        writes = [op for op in part if op.kind is Kind.WRITE]
        reads = [op for op in part if op.kind is Kind.READ]
        reads = _without(reads, functools.partial(with_writes, writes))
        part = sorted([*writes, *reads], key=lambda op: op.start)
    return part


def _by_value(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Return each write with the reads of its value; the reads of no value are together."""
    groups: dict[str | None, list[Operation]] = {}
    for operation in operations:
        groups.setdefault(operation.value, []).append(operation)
    return list(groups.values())


def _without(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """Remove halves, quarters ... single items of a list, as long as something holds without them."""
    kept = list(items)
    size = (len(kept) + 1) // 2
    while size:
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if holds(rest):
                kept = rest
            else:
                start += size
        size //= 2
    return kept
