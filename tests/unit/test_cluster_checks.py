"""Each fault is found and named with its proof; a correct store is never accused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.cluster import Fault, Kind, Operation, Outcome, examine
from harness.cluster.drawing import UNKNOWN_LEGEND, draw
from harness.errors import UsageError
from tests.unit.histories import (
    by_chance,
    explicable,
    of_a_correct_store,
    read,
    refused,
    unknown,
    write,
)
from tests.unit.test_cluster_linearizability import tangle

A = write("A", 0, 1)
B = write("B", 2, 3)
OTHER = [write("C", 0, 1, client="x", key="b"), read("C", 8, 9, client="x", key="b")]

FAULTS = {
    "lost": (Fault.LOST, [A, B, read("A", 4, 5)], []),
    "lost, the first value": (Fault.LOST, [A, read(None, 2, 3)], []),
    "lost after it was seen": (Fault.LOST, [A, B, read("A", 6, 7)], [read("B", 4, 5)]),
    "applied twice": (
        Fault.LOST,
        [A, B, read("A", 6, 7)],
        [read("B", 4, 5), read("A", 8, 9)],
    ),
    "an older value, known by a read": (
        Fault.LOST,
        [unknown("A", 0), read("A", 1, 2), write("B", 3, 4), read("A", 5, 6)],
        [read("A", 1, 7)],
    ),
    "stale": (Fault.STALE, [A, B, read("A", 4, 5), read("B", 6, 7)], [read("B", 8, 9)]),
    "backwards between clients": (
        Fault.BACKWARDS,
        [A, unknown("B", 2), read("B", 3, 4), read("A", 5, 6, client="s")],
        [read("A", 1, 3)],
    ),
    "backwards, while a write is under way": (
        Fault.BACKWARDS,
        [A, write("B", 2, 9), read("B", 3, 4), read("A", 5, 6, client="s")],
        [],
    ),
    "nowhere, written by nobody": (Fault.NOWHERE, [read("X", 4, 5)], [A, B]),
    "nowhere, refused": (Fault.NOWHERE, [refused("X", 0), read("X", 4, 5)], [A]),
    "nowhere, before its write": (Fault.NOWHERE, [read("B", 0, 1), B], [A]),
    "split brain": (
        Fault.CONTRADICTION,
        [write("A", 0, 9), write("B", 0, 9), read("A", 10, 11), read("B", 12, 13)],
        [read("A", 1, 9)],
    ),
    "split brain while both write": (
        Fault.CONTRADICTION,
        [
            *(write("A", 0, 20), write("B", 0, 20), read("A", 1, 2)),
            *(read("B", 3, 4), read("A", 5, 6)),
        ],
        [],
    ),
}


@pytest.mark.parametrize(("fault", "proof", "beside"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_exactly_the_operations_that_prove_it(
    fault: Fault, proof: list[Operation], beside: list[Operation]
) -> None:
    findings = examine([*OTHER, *proof, *beside])
    assert findings.undecided == ()
    [violation] = findings.violations
    assert (violation.fault, violation.key) == (fault, "a")
    assert sorted(map(repr, violation.operations)) == sorted(map(repr, proof))
    assert not explicable(violation.operations)


RIGHT = {
    "an unknown write never happens": [A, unknown("B", 2), read("A", 8, 9)],
    "an unknown write happens late": [A, unknown("B", 2), read("A", 8, 9), read("B", 10, 11)],
    "an unknown write happens after a newer one": [
        *(unknown("B", 0), write("A", 5, 6), read("A", 7, 8), read("B", 9, 10)),
    ],
    "reads overlap with a write": [A, write("B", 2, 9), read("B", 3, 5), read("A", 3, 5)],
    "a read touches a write": [A, B, read("A", 3, 4)],
    "a refused write is not seen": [A, refused("B", 2), read("A", 4, 5)],
    "a read without an answer proves nothing": [
        *(A, B, Operation("r", "a", Kind.READ, "A", 4, 5, Outcome.UNKNOWN)),
        *(Operation("r", "a", Kind.READ, None, 4, 5, Outcome.FAILED),),
    ],
    "keys are independent": [A, write("A", 2, 3, key="b"), read(None, 4, 5, key="c")],
    "both orders of two writes are possible": [
        *(write("A", 0, 9), write("B", 0, 9), read("B", 10, 11), read("B", 12, 13)),
    ],
}


@pytest.mark.parametrize("operations", RIGHT.values(), ids=RIGHT)
def test_what_a_correct_store_may_do_is_no_fault(operations: list[Operation]) -> None:
    assert explicable([op for op in operations if op.key == "a"])
    findings = examine(operations)
    assert (findings.violations, findings.undecided) == ((), ())


def test_the_checks_together_agree_with_the_definition() -> None:
    chance = random.Random(5)
    faults = []
    for _ in range(6000):
        operations = by_chance(chance, unique=True)
        findings = examine(operations)
        assert (not findings.violations) is explicable(operations), operations
        for violation in findings.violations:
            faults.append(violation.fault)
            assert set(violation.operations) <= set(operations)
            assert not explicable(violation.operations), operations
    assert set(faults) == set(Fault)


@pytest.mark.parametrize("seed", range(5))
def test_a_correct_store_is_not_accused_in_a_long_history(seed: int) -> None:
    chance = random.Random(seed)
    operations = of_a_correct_store(chance, 4000, clients=chance.randint(2, 8), keys=3, lost=0.1)
    findings = examine(chance.sample(operations, len(operations)))
    assert (findings.violations, findings.undecided) == ((), ())


@pytest.mark.parametrize("seed", range(5))
def test_one_lost_write_in_a_long_history_is_noticed(seed: int) -> None:
    """The last acknowledged write of a key, after which somebody looks."""
    operations = of_a_correct_store(random.Random(seed), 4000, keys=3)
    last = max(op.end or 0 for op in operations)
    before = [op for op in operations if op.key == "k1" and op.kind is Kind.READ and op.value]
    lost = write("lost", last + 1, last + 2, key="k1")
    seen = read(before[-1].value, last + 3, last + 4, key="k1")
    [violation] = examine([*operations, lost, seen]).violations
    assert violation.fault is Fault.LOST
    assert {lost, seen} < set(violation.operations)


def test_a_lost_write_is_noticed_where_the_search_would_have_no_answer() -> None:
    operations = [*tangle(24), write("z", 300, 301), read("x", 302, 303)]
    findings = examine(operations, most=1000)
    assert [violation.fault for violation in findings.violations] == [Fault.LOST]
    assert examine(tangle(24), most=1000).undecided == ("a",)


def test_a_value_that_is_written_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="written twice"):
        examine([write("A", 0, 1), write("A", 2, 3)])


def test_the_message_of_a_lost_write_names_values_clients_and_times() -> None:
    message = str(examine([A, B, read("A", 4, 5), read("A", 6, 7)]))
    assert message.splitlines() == [
        "lost acknowledged write: key 'a' (2 such reads)",
        "  w wrote 'B', acknowledged at 3.000 s",
        "  then r read the older 'A' at 4.000 s",
        "  no later read returned 'B'",
        "  w write 'A' |=|         0.000 to 1.000 s",
        "  w write 'B'     |=|     2.000 to 3.000 s",
        "  r read  'A'         |=| 4.000 to 5.000 s",
    ]


def test_the_manual_shows_what_a_violation_looks_like() -> None:
    history = [
        write("s7-c1-38", 12.301, 12.345, client="c1"),
        write("s7-c2-41", 12.4, 12.41, client="c2"),
        read("s7-c1-38", 13.001, 13.004, client="c0"),
        read("s7-c1-38", 14, 14.1, client="c0"),
    ]
    page = Path(__file__).parents[2] / "docs" / "explanation" / "histories.md"
    assert f"\n{examine(history)}\n" in page.read_text()


def test_a_drawing_shows_the_order_of_calls_and_returns() -> None:
    assert draw(
        [A, unknown("B", 0.5), read("A", 1, 2), refused("C", 3), read(None, 3600, 3601)]
    ) == [
        "w write 'A'     |=====|          0.000 to 1.000 s",
        "u write 'B'       |============? 0.500 no answer",
        "r read  'A'         |===|        1.000 to 2.000 s",
        "f write 'C'               x      3.000 refused",
        "r read  nothing             |=|  3600.000 to 3601.000 s",
        UNKNOWN_LEGEND,
    ]


def test_a_message_fits_a_screen_whatever_a_guest_answers() -> None:
    hostile = "\x1b[2J\n" * 100_000
    operations = [
        op
        for number in range(300)
        for op in (
            write(f"{number}" * 500, 0, 1, client="client" * 50, key=f"k{number}" * 200),
            read(hostile, 2, 3, client="client" * 50, key=f"k{number}" * 200),
        )
    ]
    lines = str(examine([*operations, *tangle(24)], most=100)).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    assert "also 294 more keys" in lines
    assert lines[-1] == "undecided: 'a'"


def test_a_long_proof_is_cut() -> None:
    lines = draw([write(f"v{number}" * 20, number, number + 20) for number in range(30)])
    assert len(lines) == 11
    assert lines[-1] == "and 20 more"
    assert max(map(len, lines)) <= 100
