"""Decides whether a history of one register is linearizable.

A history is *linearizable* if each operation can be given one moment between its start and its end at
which it takes effect, such that each read returns the value of the last write before it (Herlihy and
Wing, "Linearizability: A Correctness Condition for Concurrent Objects", TOPLAS 1990). Keys are
independent registers, and a history is linearizable if that of each key is (the same paper, theorem 1;
Horn and Kroening, "Faster linearizability checking via P-compositionality", 2015). So this module sees
one key at a time.

The algorithm is the search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) in the
just-in-time form of Lowe ("Testing for linearizability", 2017): a walk over the calls and returns in the
order of time, in which an operation takes effect only when some return demands it. A configuration is
the place in that order, the set of operations that have taken effect and not returned yet, and the value
of the register; one that was visited before is not visited again. So the effort depends on the number of
operations that are under way at the same time, and not on the length of the history. What is known of
registers makes it smaller, and changes no answer:

- A read of the present value takes effect at once: it changes nothing.
- A write whose value no read returned takes effect just before some other write that is under way:
  no client sees it.
- A value that no other write brings back is not overwritten while a read of it is still to come.
- A write of unknown outcome whose value no read returned is left out: it need not have happened. One
  whose value was read has happened before the end of the first such read, if no other write has that
  value.

The search is exponential in the worst case, for any algorithm that takes arbitrary values (Gibbons and
Korach, "Testing Shared Memories", 1997). It ends after a number of configurations without an answer.

Why a checker of our own: on 29 November 2026 PyPI had none. No name or summary of its packages spoke of
linearizability in this sense, Jepsen, Knossos or Elle; ``porcupine-python`` is a serializer,
``pvporcupine`` hears wake words, ``knossos`` manages mods of a game. Porcupine (MIT) is alive, but is a
Go library, and would bring a compiler or a binary for each architecture into a pure wheel for the 150
lines below; Knossos and Elle need a JVM.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.cluster.operation import Kind, Operation, Outcome

MOST_CONFIGURATIONS: Final = 2_000_000
"""The number after which a search ends without an answer: about a second, and 100 MB."""

_UNREAD: Final = -1
"""The value of the register after a write whose value no read returned; all such values are alike."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of a search.

    Attributes:
        linearizable: ``None`` if the search ended without an answer.
        configurations: The number of configurations that it visited.
    """

    linearizable: bool | None
    configurations: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """An operation that matters, with a number in place of its value.

    Attributes:
        start: When it may take effect at the earliest.
        end: When it has taken effect, or never will.
        write: Whether it is a write.
        value: The number of the value; :data:`_UNREAD` for a write whose value no read returned.
        certain: Whether it has happened.
    """

    start: float
    end: float
    write: bool
    value: int
    certain: bool


@dataclass(frozen=True, slots=True)
class _Event:
    """A call or a return.

    Attributes:
        entry: The operation.
        bit: The bit that stands for it in the set of a configuration while it is under way.
        returns: Whether it is its return.
        writes: At a return, the bits and values of the writes under way whose value a read returned.
        unread: At a return, the bits of the other writes under way.
        reads: At a return, the bits of the reads under way, by value.
    """

    entry: _Entry
    bit: int
    returns: bool
    writes: tuple[tuple[int, int], ...] = ()
    unread: int = 0
    reads: dict[int, int] | None = None


def decide(
    operations: Iterable[Operation],
    *,
    initial: str | None = None,
    most: int = MOST_CONFIGURATIONS,
) -> Decision:
    """Return whether the operations on one register are linearizable.

    Args:
        operations: All operations on one key, in any order; values may repeat.
        initial: The value of the register before the first.
        most: The number of configurations after which the search ends.
    """
    entries, last_value, unique = _entries(list(operations), initial)
    events = _events(entries)
    last_call = {
        event.entry.value: index
        for index, event in enumerate(events)
        if not event.returns and not event.entry.write
    }
    keep_until = {value: last_call.get(value, -1) for value in unique}
    visited: set[tuple[int, int, int]] = set()
    pending = [(0, 0, last_value)]
    configurations = 0
    while pending:
        index, effective, value = pending.pop()
        while True:
            if index == len(events):
                return Decision(True, configurations)
            configurations += 1
            if configurations > most:
                return Decision(None, most)
            event = events[index]
            entry = event.entry
            if not event.returns:
                if not entry.write and entry.value == value:
                    effective |= event.bit
            elif effective & event.bit:
                effective &= ~event.bit
            elif entry.certain:
                place = (index, effective, value)
                if keep_until.get(value, -1) < index and place not in visited:
                    visited.add(place)
                    pending += _next(event, index, effective)
                break
            index += 1
    return Decision(False, configurations)


def _next(event: _Event, index: int, effective: int) -> list[tuple[int, int, int]]:
    """Return the configurations after one more write, the most promising last.

    The operation that returns has not taken effect. If it is a read, the register has another value; so
    some write has to take effect.
    """
    entry, reads = event.entry, event.reads or {}
    effective |= event.unread
    steps = [
        (index, effective | bit | reads.get(value, 0), value)
        for bit, value in event.writes
        if not effective & bit and value != entry.value
    ]
    steps += [
        (index, effective | bit | reads.get(value, 0), value)
        for bit, value in event.writes
        if not effective & bit and value == entry.value
    ]
    if entry.write and entry.value == _UNREAD:
        steps.append((index, effective, _UNREAD))
    return steps


def _entries(
    operations: list[Operation], initial: str | None
) -> tuple[list[_Entry], int, set[int]]:
    """Return the operations that matter, the initial value, and the values that never come back."""
    reads = [op for op in operations if op.kind is Kind.READ and op.acknowledged]
    writes = [op for op in operations if op.kind is Kind.WRITE and op.outcome is not Outcome.FAILED]
    times = Counter(op.value for op in writes)
    numbers: dict[str | None, int] = {initial: 0}
    first: dict[str | None, float] = {}
    last: dict[str | None, float] = {}
    for op in reads:
        numbers.setdefault(op.value, len(numbers))
        first[op.value] = min(op.done_by, first.get(op.value, math.inf))
        last[op.value] = max(op.done_by, last.get(op.value, -math.inf))
    entries = [_Entry(op.start, op.done_by, False, numbers[op.value], True) for op in reads]
    for op in writes:
        if op.value not in first:
            if op.acknowledged:
                entries.append(_Entry(op.start, op.done_by, True, _UNREAD, True))
        elif op.acknowledged:
            entries.append(_Entry(op.start, op.done_by, True, numbers[op.value], True))
        elif times[op.value] == 1 and op.value != initial:
            # A read that ended before it began is noticed there: no write of its value is under way.
            end = max(first[op.value], op.start)
            entries.append(_Entry(op.start, end, True, numbers[op.value], True))
        elif op.start <= last[op.value]:
            entries.append(_Entry(op.start, last[op.value], True, numbers[op.value], False))
    unique = {
        number
        for value, number in numbers.items()
        if times[value] == (0 if value == initial else 1)
    }
    return entries, 0, unique


def _events(entries: list[_Entry]) -> list[_Event]:
    """Return the calls and returns in the order of time; at the same moment, calls come first.

    So operations that touch are concurrent: a clock that stands still accuses no cluster.
    """
    order = sorted(
        [(entry.start, False, number) for number, entry in enumerate(entries)]
        + [(entry.end, True, number) for number, entry in enumerate(entries)]
    )
    bits: dict[int, int] = {}
    free: list[int] = []
    events = []
    for _, returns, number in order:
        entry = entries[number]
        if not returns:
            bits[number] = free.pop() if free else 1 << (len(bits))
            events.append(_Event(entry, bits[number], False))
            continue
        writes, unread, reads = [], 0, dict[int, int]()
        for other, bit in bits.items():
            value = entries[other].value
            if not entries[other].write:
                reads[value] = reads.get(value, 0) | bit
            elif value == _UNREAD:
                unread |= bit
            else:
                writes.append((bit, value))
        events.append(_Event(entry, bits[number], True, tuple(writes), unread, reads))
        free.append(bits.pop(number))
    return events
