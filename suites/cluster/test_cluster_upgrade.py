"""Rolling upgrades: a member at a time, while clients write."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Cluster, Lab, Machine, Publish, Releases, UpdateServer, errors, points

pytestmark = pytest.mark.needs("cluster", "upgrade", "ssh")


@pytest.fixture
def cluster(lab: Lab, update_server: UpdateServer) -> Cluster:
    """Return a cluster of three that reaches the update server and trusts it."""
    cluster = lab.fork_cluster(points.cluster_3, services=[update_server])
    for machine in cluster:
        machine.os.trust(lab.ca.pem)
    return cluster


def wait_given_up(machine: Machine[Any]) -> None:
    """Wait until a machine that is in the first try of a bad version has tried it as often as it may."""
    with machine.expecting(errors.GuestError):
        while True:
            mark = machine.qmp.mark()
            # The reboot by command, and one for each try.
            if machine.restarts > (machine.os.tries or 0):
                break
            machine.wait_for_reset(400, since=mark)
    machine.os.login()


@pytest.mark.tier(
    "gate",
    cost=200,
    catches="an upgrade that loses a member's data, or a new member that old ones do not understand",
    uses=("cluster-3", "new"),
)
def test_a_rolling_upgrade_under_writes(
    cluster: Cluster, publish: Publish, releases: Releases, fault_seed: int
) -> None:
    """All members come to the new version one by one; nothing that was acknowledged is lost."""
    variant = cluster.leader().os.selection.variant
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        cluster.rolling_upgrade(publish(releases.new, variant=variant), releases.new)
        clients.wait_acknowledged(10)
    assert {machine.os.version() for machine in cluster} == {releases.new}
    assert len(cluster.members()) == len(cluster)


@pytest.mark.tier(
    "nightly",
    cost=200,
    catches="a rolling upgrade that goes on after a member fell",
    uses=("cluster-3", "new", "unhealthy"),
)
@pytest.mark.needs("rollback")
def test_it_stops_at_a_broken_image(
    cluster: Cluster, publish: Publish, releases: Releases, fault_seed: int
) -> None:
    """The second member gets a version that fails its health check: it falls back, the others serve."""
    variant = cluster.leader().os.selection.variant
    good = publish(releases.new, variant=variant)
    bad = publish(releases.broken("unhealthy"), variant=variant)
    asked: list[str] = []

    def source(machine: object) -> str:
        asked.append(getattr(machine, "name", ""))
        return good if len(asked) == 1 else bad

    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        with pytest.raises(errors.RollingUpgradeError):
            cluster.rolling_upgrade(source, releases.new)
        assert len(asked) == 2
        wait_given_up(cluster[asked[1]])
        cluster.wait_healthy()
        clients.wait_acknowledged(10)
    versions = {machine.name: machine.os.version() for machine in cluster}
    assert versions[asked[0]] == releases.new
    assert [versions[name] for name in versions if name != asked[0]] == [releases.old] * 2
