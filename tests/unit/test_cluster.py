"""The words of a cluster, over machines and members that are in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.cluster import Cluster, Member
from harness.cluster.cluster import AddressWatch
from harness.deadline import Scale
from harness.errors import (
    CommandError,
    HistoryError,
    PanicError,
    RollingUpgradeError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
)
from harness.evidence.timeline import Timeline
from harness.scope import Scope
from tests.unit.cluster_stores import Correct, Forgetful, Memory

LONG = 600.0
"""Seconds that no wait of these tests needs."""


class System:
    """The system of a machine: a version that upgrades."""

    def __init__(self) -> None:
        self.running = self.next = "1"
        self.broken = False

    def upgrade(self, source: str, deadline: Any) -> None:
        self.next = source.removeprefix("https://server/")

    def wait_good(self, deadline: Any) -> None:
        pass

    def version(self) -> str:
        return self.running


class Node:
    """A machine in memory; equal to another of its name, as its member is the same."""

    scale = Scale(1.0)

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = True
        self.os = System()
        self.reboots = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def stop(self) -> None:
        self.running = False

    power_cut = stop

    def power_on(self) -> Node:
        assert not self.running
        again = Node(self.name)
        again.os = self.os
        return again

    def reboot(self, deadline: Any) -> None:
        self.reboots += 1
        if not self.os.broken:
            self.os.running = self.os.next


class Members(Memory):
    """The provider; a member is healthy while its machine runs."""

    def __init__(self) -> None:
        super().__init__()
        self.ill: set[str] = set()
        self.shares: dict[str, bool] = {}

    def healthy(self, machine: Any) -> bool:
        return super().healthy(machine) and machine.running and machine.name not in self.ill

    def members(self, via: Any) -> list[Member]:
        return [Member(name) for name in sorted(each.name for each in self._members)]

    def leader(self, via: Any) -> str | None:
        return next((each.name for each in self._members if each.running), None)

    def leave(self, name: str, via: Any) -> None:
        self._members = [each for each in self._members if each.name != name]

    def holds(self, machine: Any) -> bool:
        return self.shares.get(machine.name, False)


class Forks:
    """Makes machines."""

    def fork(self, names: Sequence[str]) -> list[Any]:
        return [Node(name) for name in names]


class Lan:
    """A segment that only has a name."""

    name = "lan"


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def scope() -> Iterator[Scope]:
    with Scope("test") as scope:
        yield scope


@pytest.fixture
def cluster(members: Members, scope: Scope, tmp_path: Path) -> Cluster:
    machines: dict[str, Any] = {f"node-{n}": Node(f"node-{n}") for n in (1, 2, 3)}
    lan: Any = Lan()
    return Cluster(
        "cluster",
        machines,
        provider=members,
        segment=lan,
        scope=scope,
        timeline=Timeline(),
        folder=tmp_path,
        nodes=Forks(),
    )


def names(machines: Sequence[Any]) -> list[str]:
    return [machine.name for machine in machines]


@pytest.mark.parametrize("together", [False, True])
def test_it_forms_and_all_are_healthy(cluster: Cluster, together: bool) -> None:
    cluster.form(together=together)
    assert [member.name for member in cluster.members()] == ["node-1", "node-2", "node-3"]
    assert names(cluster.healthy()) == ["node-1", "node-2", "node-3"]
    assert cluster.leader().name == "node-1"
    assert names(cluster.followers()) == ["node-2", "node-3"]
    assert names(cluster.others("node-2")) == ["node-1", "node-3"]


def test_a_name_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(UnknownNameError, match="unknown machine 'node-4'"):
        cluster["node-4"]


def test_a_wait_for_health_names_who_is_not(cluster: Cluster, members: Members) -> None:
    cluster.form()
    members.ill = {"node-2", "node-3"}
    with pytest.raises(WaitTimeoutError, match="to be healthy: node-2, node-3"):
        cluster.wait_healthy(deadline=0.01)
    cluster.wait_healthy("node-1", deadline=LONG)


def test_a_failure_of_the_scope_ends_a_wait_at_once(
    cluster: Cluster, members: Members, scope: Scope
) -> None:
    cluster.form()
    members.ill = {"node-1", "node-2", "node-3"}
    looked = threading.Event()
    healthy = members.healthy

    def look(machine: Any) -> bool:
        looked.set()
        return healthy(machine)

    members.healthy = look  # type: ignore[method-assign]
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            cluster.leader(deadline=LONG)
        except BaseException as error:
            ended.append(error)

    members.leader = lambda via: None  # type: ignore[method-assign]
    thread = threading.Thread(target=wait)
    thread.start()
    looked.wait(LONG)
    scope.fail(PanicError("node-2 panicked"))
    thread.join(LONG)
    assert [type(error) for error in ended] == [PanicError]


def test_power_goes_and_comes_back(cluster: Cluster) -> None:
    cluster.form()
    before = cluster["node-1"]
    cluster.power_cut("node-1")
    assert names(cluster.running) == ["node-2", "node-3"]
    assert cluster.leader().name == "node-2"
    (after,) = cluster.power_on()
    assert after is cluster["node-1"] is not before
    # The old object still names the machine of today.
    assert cluster.others(before) == cluster.others(after)
    cluster.wait_healthy(before, deadline=LONG)
    cluster.power_cut()
    assert not cluster.running
    assert names(cluster.power_on()) == ["node-1", "node-2", "node-3"]


def test_members_come_and_go(cluster: Cluster) -> None:
    cluster.form()
    added = cluster.add()
    assert added.name == "node-4"
    assert len(cluster.members()) == 4
    cluster.remove("node-2")
    assert list(cluster.machines) == ["node-1", "node-3", "node-4"]
    assert "node-2" not in {member.name for member in cluster.members()}
    # The free number is taken first.
    assert names(cluster.new(2)) == ["node-2", "node-5"]
    with pytest.raises(UsageError, match="has a machine node-2 already"):
        cluster.adopt(cluster["node-2"])


def test_the_history_of_a_block_is_checked(cluster: Cluster, members: Members) -> None:
    cluster.form()
    with cluster.history(seed=1, rate=500.0) as clients:
        clients.wait_acknowledged(50, LONG)
        cluster.remove("node-3")  # its clients go on with others
        clients.wait_acknowledged(20, LONG)
    members._store = Forgetful(7)
    with (
        pytest.raises(HistoryError),
        cluster.history(seed=2, rate=500.0) as clients,
    ):
        clients.wait_acknowledged(300, LONG)
    members._store = Correct(0)
    with cluster.history(seed=3, check=False, rate=500.0) as clients:
        clients.wait_acknowledged(5, LONG)
    with pytest.raises(UsageError, match="have the seed 3"), cluster.history(seed=3):
        pass


def test_an_error_of_the_block_is_the_one_to_show(cluster: Cluster, members: Members) -> None:
    cluster.form()
    members._store = Forgetful(7)
    with (
        pytest.raises(CommandError, match="mine"),
        cluster.history(seed=1, rate=500.0) as clients,
    ):
        clients.wait_acknowledged(300, LONG)
        raise CommandError("mine")


def test_a_rolling_upgrade_goes_one_by_one_and_the_leader_is_last(cluster: Cluster) -> None:
    cluster.form()
    order: list[str] = []

    def source(machine: Any) -> str:
        order.append(machine.name)
        # Nobody else is away at the same time.
        assert len(cluster.healthy()) == 3
        return "https://server/2"

    cluster.rolling_upgrade(source, "2", deadline=LONG)
    assert order == ["node-2", "node-3", "node-1"]
    assert {machine.os.version() for machine in cluster} == {"2"}


def test_a_rolling_upgrade_stops_at_the_first_that_fails(cluster: Cluster) -> None:
    cluster.form()
    cluster["node-3"].os.broken = True
    with pytest.raises(RollingUpgradeError, match=r"stopped at node-3.*runs version 1") as caught:
        cluster.rolling_upgrade("https://server/2", "2", deadline=LONG)
    assert "upgraded before: node-2" in str(caught.value)
    assert [machine.os.version() for machine in cluster] == ["1", "2", "1"]
    untouched: Any = cluster["node-1"]
    assert untouched.reboots == 0


def test_the_holder_of_the_address(cluster: Cluster, members: Members) -> None:
    with pytest.raises(WaitTimeoutError, match="virtual address"):
        cluster.wait_holder(deadline=0.01)
    members.shares = {"node-2": True}
    assert cluster.wait_holder(deadline=LONG).name == "node-2"
    with pytest.raises(WaitTimeoutError):
        cluster.wait_holder("node-1", "node-3", deadline=0.01)
    assert names(cluster.holders()) == ["node-2"]


@pytest.mark.parametrize(
    ("looks", "twice"),
    [
        (["a", "a", "b", "b"], []),
        # It moves while they are asked.
        (["a", "ab", "b", "b"], []),
        (["a", "ab", "ab", "b"], [("a", "b")]),
        (["", "bc", "bc", "bc"], [("b", "c")]),
    ],
)
def test_an_address_that_two_have(
    looks: list[str], twice: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cluster.cluster._PACE", 0.001)
    seen = iter(looks)
    over = threading.Event()

    def holders() -> list[Any]:
        look = next(seen, None)
        if look is None:
            over.set()
            return []
        return [Node(name) for name in look]

    with AddressWatch(holders) as watch:
        assert over.wait(LONG)
    assert watch.held_twice == twice
    assert watch.seen[0] == tuple(looks[0] or looks[1])


def test_a_watch_that_cannot_look_is_no_watch() -> None:
    looked = threading.Event()

    def holders() -> list[Any]:
        looked.set()
        raise CommandError("ip failed")

    with pytest.raises(CommandError, match="ip failed"), AddressWatch(holders):
        assert looked.wait(LONG)
    with pytest.raises(PanicError, match="mine"), AddressWatch(holders):
        raise PanicError("mine")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["micro"], "image micro does not form clusters\n  try: cluster: {provider: NAME"),
        (["skiff", "--size", "0"], "--size 0: a cluster has one member at least"),
    ],
)
def test_the_command_refuses_what_it_cannot_start(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with contextlib.chdir(tmp_path):
        assert main(["cluster", *arguments]) == 2
    assert says in capsys.readouterr().err
