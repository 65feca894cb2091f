"""The search agrees with the definition, is fast on long histories, and says when it has no answer."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from harness.cluster import Kind, Operation, decide
from harness.cluster.shrink import shrink
from tests.unit.histories import (
    by_chance,
    explicable,
    of_a_correct_store,
    read,
    unknown,
    write,
)

HISTORIES = 6000


@pytest.mark.parametrize("unique", [True, False], ids=["values-unique", "values-repeat"])
def test_the_search_agrees_with_the_definition(unique: bool) -> None:
    chance = random.Random(1)
    answers = []
    for _ in range(HISTORIES):
        operations = by_chance(chance, unique=unique)
        answer = decide(operations).linearizable
        assert answer is explicable(operations), operations
        answers.append(answer)
    # Neither answer is rare, or the comparison would show little.
    assert min(answers.count(True), answers.count(False)) > HISTORIES / 5


def test_an_initial_value_is_read_until_it_is_replaced() -> None:
    after = [write("x", 0, 1), read("old", 2, 3)]
    assert not decide(after, initial="old").linearizable
    assert decide([read("old", 0, 1), write("x", 2, 3)], initial="old").linearizable
    assert decide([*after, unknown("old", 0)], initial="old").linearizable


def test_a_write_without_an_answer_need_not_happen_though_its_value_is_read() -> None:
    """Another write of the same value explains the read."""
    operations = [
        *(write("x", 0, 1), read("x", 0, 10), write("z", 2, 3)),
        *(read("z", 3, 4), unknown("x", 5), read("z", 11, 12)),
    ]
    assert explicable(operations)
    assert decide(operations).linearizable


def test_a_value_that_is_still_to_be_read_is_kept() -> None:
    """Or else the search would try all orders of the writes before it finds that none is right."""
    count = 20
    writes = [write(f"v{number}", 0, 100 + number) for number in range(count)]
    reads = [read(f"v{number}", 2 * number + 1, 2 * number + 2) for number in range(count)]
    again = read("v0", 90, 91)
    assert decide([*writes, *reads]).linearizable
    decision = decide([*writes, *reads, again])
    assert decision.linearizable is False
    assert decision.configurations < 10 * count


def test_memory_does_not_grow_with_the_writes_that_were_never_answered() -> None:
    """They are known to have happened once they were read, and are forgotten."""
    few, many = (of_a_correct_store(random.Random(7), 4000, lost=lost) for lost in (0.0, 0.5))
    peaks = []
    for operations in (few, many):
        tracemalloc.start()
        assert decide(operations).linearizable
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.parametrize("keys", [1, 3])
def test_the_effort_grows_with_the_length_of_a_history_alone(keys: int) -> None:
    operations = of_a_correct_store(random.Random(2), 20_000, keys=keys)
    for number in range(keys):
        on_key = [op for op in operations if op.key == f"k{number}"]
        decision = decide(on_key)
        assert decision.linearizable
        # A call and a return of each are two.
        assert decision.configurations < 4 * len(on_key)


def test_a_fault_late_in_a_long_history_is_decided_and_shrunk_to_its_proof() -> None:
    operations = of_a_correct_store(random.Random(3), 20_000)
    last = max(op.end or 0 for op in operations)
    fault = [
        write("x", last + 1, last + 9),
        write("y", last + 1, last + 9, client="v"),
        read("x", last + 10, last + 11),
        read("y", last + 12, last + 13),
        read("x", last + 14, last + 15),
    ]
    decision = decide([*operations, *fault])
    assert decision.linearizable is False
    assert decision.configurations < 8 * len(operations)
    proof = shrink([*operations, *fault])
    assert not explicable(proof)
    assert set(proof) < set(fault)
    assert len(proof) == 4


def tangle(count: int) -> list[Operation]:
    """Return writes that each have a read, all at the same time, and later a contradiction."""
    together = [
        op
        for number in range(count)
        for op in (write(f"v{number}", 0, 100 + number), read(f"v{number}", 0, 100 + number))
    ]
    return [
        *together,
        write("x", 200, 210),
        write("y", 200, 210),
        read("x", 220, 221),
        read("y", 222, 223),
    ]


def test_the_search_on_a_tangled_history_ends_without_an_answer() -> None:
    decision = decide(tangle(24), most=20_000)
    assert decision.linearizable is None
    assert decision.configurations == 20_000
    assert decide(tangle(4), most=20_000).linearizable is False


def test_a_contradiction_is_shrunk_to_operations_that_are_all_needed() -> None:
    chance = random.Random(4)
    seen = 0
    while seen < 300:
        operations = by_chance(chance, unique=True)
        written = {op.value for op in operations if op.kind is Kind.WRITE} | {None}
        from_nowhere = any(op.value not in written for op in operations)
        if from_nowhere or explicable(operations):
            continue
        seen += 1
        proof = shrink(operations)
        assert not explicable(proof)
        assert set(proof) <= set(operations)
        for op in proof:
            without = [
                other
                for other in proof
                if other is not op and (op.kind is Kind.READ or other.value != op.value)
            ]
            assert explicable(without), (proof, op)


def test_shrinking_without_effort_left_returns_the_whole() -> None:
    operations = tangle(3)
    assert sorted(map(repr, shrink(operations, effort=0))) == sorted(map(repr, operations))
