"""Histories for the tests of the checks: written by hand, by chance, or by a correct store."""

from __future__ import annotations

import random
from collections.abc import Sequence

from harness.cluster import Kind, Operation, Outcome


def write(value: str, start: float, end: float, *, client: str = "w", key: str = "a") -> Operation:
    return Operation(client, key, Kind.WRITE, value, start, end, Outcome.OK)


def read(
    value: str | None, start: float, end: float, *, client: str = "r", key: str = "a"
) -> Operation:
    return Operation(client, key, Kind.READ, value, start, end, Outcome.OK)


def unknown(value: str, start: float, *, client: str = "u", key: str = "a") -> Operation:
    return Operation(client, key, Kind.WRITE, value, start, start + 1, Outcome.UNKNOWN)


def refused(value: str, start: float, *, client: str = "f", key: str = "a") -> Operation:
    return Operation(client, key, Kind.WRITE, value, start, start + 1, Outcome.FAILED)


def explicable(operations: Sequence[Operation], value: str | None = None) -> bool:
    """Return whether some order explains all reads, by trying all of them."""
    matters = [
        op
        for op in operations
        if op.acknowledged or (op.kind is Kind.WRITE and op.outcome is Outcome.UNKNOWN)
    ]
    return _explicable(matters, value)


def _explicable(rest: Sequence[Operation], value: str | None) -> bool:
    if not any(op.acknowledged for op in rest):
        return True
    for index, op in enumerate(rest):
        if any(other.before(op) for other in rest):
            continue
        others = [*rest[:index], *rest[index + 1 :]]
        if op.kind is Kind.READ:
            if op.value == value and _explicable(others, value):
                return True
        elif _explicable(others, op.value):
            return True
    return False


def by_chance(chance: random.Random, *, unique: bool) -> list[Operation]:
    """Return up to eight operations on one key, right or wrong; many of them touch or overlap.

    Args:
        chance: Decides everything.
        unique: Whether each write has a value of its own.
    """
    operations: list[Operation] = []
    values: list[str | None] = [None]
    span, longest = chance.choice([6, 10, 20]), chance.choice([1, 4, 10])
    for number in range(chance.randint(1, 8)):
        start = chance.randint(0, span)
        end = start + chance.randint(0, longest)
        if chance.random() < 0.5:
            value = f"v{number}" if unique else chance.choice("xyz")
            values.append(value)
            outcome = chance.choices(list(Outcome), [6, 1, 3])[0]
            operations.append(Operation(f"c{number}", "a", Kind.WRITE, value, start, end, outcome))
        else:
            operations.append(read("", start, end, client=f"c{number}"))
    if chance.random() < 0.1:
        values.append("nowhere")
    return [
        read(chance.choice(values), op.start, op.end or 0, client=op.client)
        if op.kind is Kind.READ
        else op
        for op in operations
    ]


def of_a_correct_store(
    chance: random.Random, count: int, *, clients: int = 5, keys: int = 1, lost: float = 0.02
) -> list[Operation]:
    """Return the history of a correct store, in the order in which operations take effect.

    Args:
        chance: Decides everything.
        count: The number of operations.
        clients: All of them are busy all the time, so that many operations overlap.
        keys: The number of keys.
        lost: The share of answers that are lost. Such a write takes effect at once, much later or never.
    """
    store: dict[str, str] = {}
    late: list[tuple[float, str, str]] = []
    free = [0.0] * clients
    plans = []
    for number in range(count):
        client = min(range(clients), key=free.__getitem__)
        start = free[client] + chance.random()
        effect = start + chance.random()
        end = effect + chance.random()
        free[client] = end
        key = f"k{chance.randrange(keys)}"
        plans.append((effect, start, end, f"c{client}", key, f"v{number}"))
    operations = []
    for effect, start, end, name, key, value in sorted(plans):
        for entry in sorted(entry for entry in late if entry[0] < effect):
            late.remove(entry)
            store[entry[1]] = entry[2]
        answered = chance.random() >= lost
        outcome = Outcome.OK if answered else Outcome.UNKNOWN
        if chance.random() < 0.5:
            result = store.get(key) if answered else None
            operations.append(Operation(name, key, Kind.READ, result, start, end, outcome))
            continue
        if answered or chance.random() < 0.3:
            store[key] = value
        elif chance.random() < 0.6:
            late.append((effect + chance.expovariate(0.1), key, value))
        operations.append(Operation(name, key, Kind.WRITE, value, start, end, outcome))
    return operations
