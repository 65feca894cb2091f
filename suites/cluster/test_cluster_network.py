"""Networks that fail: partitions, links that flap, lose frames and delay them."""

from __future__ import annotations

import pytest

from harness import Cluster

pytestmark = pytest.mark.needs("cluster", "ssh")


@pytest.mark.tier(
    "gate",
    cost=60,
    catches="a minority that still acknowledges writes, or that does not come back",
    uses=("cluster-3",),
)
@pytest.mark.parametrize("alone", ["leader", "follower"])
def test_one_is_parted_from_the_others(cluster: Cluster, alone: str, fault_seed: int) -> None:
    """The majority serves, the one alone does not; healed, all are one cluster again."""
    leader = cluster.leader()
    lonely = leader if alone == "leader" else cluster.followers()[0]
    others = cluster.others(lonely)
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        with cluster.partition(lonely, others):
            cluster.wait_healthy(*others)
            clients.wait_acknowledged(20)
            assert lonely not in cluster.healthy()
            assert cluster.leader(via=others[0]) in others
        cluster.wait_healthy()
        clients.wait_acknowledged(10)


@pytest.mark.tier(
    "nightly",
    cost=60,
    catches="a leader that hears nobody and still acknowledges",
    uses=("cluster-3",),
)
@pytest.mark.parametrize("deaf", [True, False], ids=["hears nobody", "nobody hears it"])
def test_frames_pass_in_one_direction_only(cluster: Cluster, deaf: bool, fault_seed: int) -> None:
    """A leader that only sends, or only hears, is replaced or serves; it never does both halves."""
    leader = cluster.leader()
    others = cluster.others(leader)
    groups = (others, [leader]) if deaf else ([leader], others)
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        with cluster.partition(*groups, one_way=True):
            cluster.wait_healthy(*others)
            clients.wait_acknowledged(20)
        cluster.wait_healthy()
        clients.wait_acknowledged(10)


@pytest.mark.tier(
    "nightly", cost=60, catches="elections without end on a link that flaps", uses=("cluster-3",)
)
def test_the_link_of_one_flaps(cluster: Cluster, fault_seed: int) -> None:
    """The cluster serves while one member comes and goes."""
    node, *_ = cluster.followers()
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        with cluster.segment.link(node).flap(up=1.0, down=3.0):
            clients.wait_acknowledged(60)
        cluster.wait_healthy()
        clients.wait_acknowledged(10)


@pytest.mark.tier(
    "gate", cost=50, catches="acknowledged writes that a bad network loses", uses=("cluster-3",)
)
def test_all_links_are_slow_and_lossy(cluster: Cluster, fault_seed: int) -> None:
    """Frames are lost, late, doubled, swapped and damaged; what is acknowledged holds."""
    first, second, third = cluster
    with cluster.history(seed=fault_seed) as clients:
        for pair in ((first, second), (first, third), (second, third)):
            cluster.segment.link(*pair).impair(
                loss=0.05, delay=0.02, jitter=0.01, duplicate=0.02, reorder=0.05, corrupt=0.01
            )
        clients.wait_acknowledged(40)
        cluster.segment.heal()
        cluster.wait_healthy()
        clients.wait_acknowledged(10)
