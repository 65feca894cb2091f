"""Real threads against stores in memory: each fault is noticed, and no correct store is accused."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import (
    Clients,
    Fault,
    History,
    Kind,
    MemberStore,
    Operation,
    Outcome,
    Provider,
)
from harness.deadline import UNSCALED, Scale
from harness.errors import (
    HistoryError,
    JoinRefusedError,
    PanicError,
    ProviderError,
    UsageError,
    Verdict,
    WaitTimeoutError,
    verdict_of,
)
from harness.scope import Scope
from tests.unit.cluster_stores import (
    REFUSAL,
    Broken,
    Correct,
    Disobedient,
    Forgetful,
    Hanging,
    Inventive,
    Lagging,
    Memory,
    Oblivious,
    Repeating,
    SplitBrain,
    Unordered,
    Unreliable,
)

FAST = 1000.0
"""Operations a second of a client: more than it can do."""

PANIC = PanicError("machine b: the kernel panicked")


def run(store: Correct, *, seed: int = 1, count: int = 400) -> History:
    """Return the history of five clients after a number of acknowledged operations."""
    history = History()
    with Clients([store], history, Scope("test"), seed=seed, rate=FAST) as clients:
        clients.wait_acknowledged(count)
    return history


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("store", "faults"),
    [
        (Forgetful, {Fault.LOST, Fault.STALE}),
        (Lagging, {Fault.LOST, Fault.STALE}),
        (SplitBrain, {Fault.LOST, Fault.STALE}),
        (Inventive, {Fault.NOWHERE}),
        (Disobedient, {Fault.NOWHERE}),
        (Repeating, {Fault.LOST, Fault.STALE, Fault.BACKWARDS}),
        (Unordered, {Fault.BACKWARDS, Fault.CONTRADICTION, Fault.LOST, Fault.STALE}),
    ],
)
def test_each_fault_of_a_store_is_noticed(
    store: Callable[[int], Correct], faults: set[Fault], seed: int
) -> None:
    history, noticed = History(), set[Fault]()
    with Clients([store(seed)], history, Scope("test"), seed=seed, rate=FAST) as clients:
        # 200 operations mostly suffice; threads decide.
        for _ in range(10):
            clients.wait_acknowledged(200)
            if noticed := {violation.fault for violation in history.examine().violations}:
                break
    assert noticed & faults
    with pytest.raises(HistoryError) as caught:
        history.check()
    assert verdict_of(caught.value) is Verdict.PRODUCT


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("store", [Correct, Unreliable])
def test_a_correct_store_is_not_accused(store: Callable[[int], Correct], seed: int) -> None:
    history = run(store(seed), seed=seed)
    history.check()
    outcomes = {op.outcome for op in history.operations}
    assert outcomes == (set(Outcome) if store is Unreliable else {Outcome.OK})


def test_operations_of_clients_overlap() -> None:
    """Without that, the tests above would show little."""
    operations = run(Correct(1)).operations
    pairs = itertools.pairwise(operations)
    assert sum(not op.before(following) for op, following in pairs) > len(operations) / 4


def test_the_seed_decides_what_each_client_does() -> None:
    def plans(seed: int) -> dict[str, list[tuple[Kind, str, str | None]]]:
        by_client: dict[str, list[tuple[Kind, str, str | None]]] = defaultdict(list)
        for op in run(Correct(0), seed=seed, count=200).operations:
            written = op.value if op.kind is Kind.WRITE else None
            by_client[op.client].append((op.kind, op.key, written))
        return by_client

    first, second, other = plans(1), plans(1), plans(2)
    assert sorted(first) == ["c0", "c1", "c2", "c3", "c4"]
    for client, operations in first.items():
        # The last client that stops reads the three keys.
        both = min(len(operations), len(second[client])) - 3
        assert both > 5
        assert operations[:both] == second[client][:both]
    # Values differ in any case: they hold the client and the seed.
    c0, c1, other_c0 = (
        [(kind, key) for kind, key, _ in operations[:20]]
        for operations in (first["c0"], first["c1"], other["c0"])
    )
    assert c0 != c1
    assert c0 != other_c0


def test_clients_stop_and_leave_no_thread() -> None:
    before = threading.active_count()
    history = run(Correct(1), count=20)
    assert threading.active_count() == before
    assert all(op.end is not None for op in history.operations)


@pytest.mark.parametrize(
    ("rate", "scale"), [(1 / 1200, UNSCALED), (FAST, Scale(FAST * 1200))], ids=["slow", "emulated"]
)
def test_a_client_keeps_to_its_rate(rate: float, scale: Scale) -> None:
    """The second operation of a client that may do one in 20 minutes does not come."""
    history = History()
    scope = Scope("test")
    with Clients([Correct(1)], history, scope, seed=1, count=3, rate=rate, scale=scale) as clients:
        with pytest.raises(WaitTimeoutError, match=r"4 acknowledged operations of the clients"):
            clients.wait_acknowledged(4, UNSCALED.after(0.3))
        assert len(history.operations) <= 3


def test_the_last_write_of_each_key_is_read_when_the_clients_stop() -> None:
    history = History()
    scope = Scope("test")
    with Clients([Oblivious(1)], history, scope, seed=1, rate=FAST, reads=0) as clients:
        clients.wait_acknowledged(20)
        assert {op.kind for op in history.operations} == {Kind.WRITE}
    *writes, first, second, third = history.operations
    assert [op.key for op in (first, second, third)] == ["a", "b", "c"]
    assert all(write.before(first) for write in writes)
    assert [violation.fault for violation in history.examine().violations] == [Fault.LOST] * 3


def test_two_groups_of_clients_share_a_history_if_their_seeds_differ() -> None:
    history, scope, store = History(), Scope("test"), Correct(1)
    for seed in (1, 2):
        with Clients([store], history, scope, seed=seed, rate=FAST) as clients:
            clients.wait_acknowledged(50)
    history.check()
    with (
        pytest.raises(UsageError, match="written twice"),
        Clients([store], history, scope, seed=2, rate=FAST) as clients,
    ):
        clients.wait_acknowledged(100)


def test_any_other_error_of_a_store_fails_the_scope() -> None:
    test = Scope("test")
    store = Broken(1, KeyError("token"))
    history = History()
    with (
        pytest.raises(ProviderError, match="the store raised KeyError: 'token'") as caught,
        Clients([store], history, test.child("cluster"), seed=1, rate=FAST) as clients,
    ):
        clients.wait_acknowledged(10_000)
    assert test.failure is caught.value
    assert isinstance(caught.value.__cause__, KeyError)
    assert verdict_of(caught.value) is Verdict.TEST
    # It may have been applied.
    assert Outcome.UNKNOWN in {op.outcome for op in history.operations}


def test_an_error_of_harness_in_a_client_is_the_failure() -> None:
    test = Scope("test")
    with (
        pytest.raises(PanicError) as caught,
        Clients([Broken(1, PANIC)], History(), test, seed=1, rate=FAST) as clients,
    ):
        clients.wait_acknowledged(10_000)
    assert caught.value is test.failure is PANIC


def test_a_failure_of_the_scope_stops_the_clients_and_ends_the_waits_for_them() -> None:
    test = Scope("test")
    store = Hanging(1)
    history = History()
    with pytest.raises(PanicError), Clients([store], history, test, seed=1, rate=FAST) as clients:
        store.hangs.wait()
        # While one thread fails the scope, this one waits: for ever, but for the failure.
        threading.Timer(0.05, test.fail, [PANIC]).start()
        clients.wait_acknowledged(1_000_000, float("inf"))
    # Nothing waited for the operation that hangs; its outcome is unknown.
    assert None in {op.end for op in history.operations}
    store.go.set()


def test_clients_of_a_scope_that_has_failed_do_nothing() -> None:
    test = Scope("test")
    test.fail(PANIC)
    history = History()
    with pytest.raises(PanicError), Clients([Correct(1)], history, test, seed=1):
        pass
    assert history.operations == ()


def test_an_operation_that_does_not_end_is_named() -> None:
    store = Hanging(1)
    with Clients([store], History(), Scope("test"), seed=1, count=1, rate=FAST, reads=0) as clients:
        store.hangs.wait()
        with pytest.raises(WaitTimeoutError, match="the last operation of c0"):
            clients.stop(0.05)
        store.go.set()


def test_the_error_of_the_block_is_the_one_to_see() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Clients([Broken(1, PANIC, 0)], History(), Scope("test"), seed=1, rate=FAST),
    ):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"keys": ()}, {"rate": 0.0}, {"reads": 1.5}], ids=str
)
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="clients need"):
        Clients([Correct(1)], History(), Scope("test"), seed=1, **wrong)  # type: ignore[arg-type]


def test_the_last_reads_go_to_each_store_that_answers() -> None:
    """A client whose member is dead would prove nothing."""

    class Dead(Correct):
        def read(self, key: str) -> str | None:
            raise REFUSAL

        def write(self, key: str, value: str) -> None:
            raise REFUSAL

    history = History()
    stores = [Correct(1), Dead(1), Oblivious(2)]
    with Clients(stores, history, Scope("test"), seed=1, count=1, rate=FAST, reads=0) as clients:
        clients.wait_acknowledged(20)
    last = history.operations[-7:]
    assert [(op.key, op.outcome) for op in last] == [
        *[("a", Outcome.OK), ("b", Outcome.OK), ("c", Outcome.OK)],
        ("a", Outcome.FAILED),
        *[("a", Outcome.OK), ("b", Outcome.OK), ("c", Outcome.OK)],
    ]
    assert [violation.fault for violation in history.examine().violations] == [Fault.LOST] * 3


def _itself(machine: Any) -> Any:
    return machine


def test_a_provider_serves_clients_while_members_come_and_go(tmp_path: Path) -> None:
    provider: Provider = Memory()
    names: list[Any] = ["node-1", "node-2", "node-3"]
    for name in names:
        provider.prepare(name, names)
    first, *others = names
    provider.first(first)
    history = History(tmp_path / "history.jsonl")
    stores = [MemberStore(provider, functools.partial(_itself, name)) for name in names]
    with Clients(stores, history, Scope("test"), seed=1, rate=FAST) as clients:
        provider.join(others[0], via=first)
        clients.wait_acknowledged(20)
        provider.join(others[1], token=provider.token(first))
        clients.wait_acknowledged(20)
        with pytest.raises(JoinRefusedError, match="a new member: duplicate-name") as caught:
            provider.join(first, via=others[0])
        provider.leave("node-1", via=others[0])
        clients.wait_acknowledged(20)
    assert caught.value.reason == "duplicate-name"
    assert verdict_of(caught.value) is Verdict.PRODUCT
    assert [member.name for member in provider.members(others[0])] == others
    assert provider.leader(others[0]) == "node-2"
    assert [provider.healthy(name) for name in names] == [False, True, True]
    assert [provider.holds(name) for name in names] == [False, True, False]
    history.check()
    # Clients take turns: c1 asked node-2 alone.
    assert {op.outcome for op in history.operations if op.client == "c1"} >= {Outcome.OK}
    assert isinstance(history.operations[0], Operation)
