"""Members that fail: the cluster serves on, takes them back, and loses nothing that it acknowledged."""

from __future__ import annotations

import pytest

from harness import Cluster, Selection, points

pytestmark = pytest.mark.needs("cluster", "ssh")


@pytest.mark.tier(
    "smoke",
    cost=60,
    catches="a cluster that loses acknowledged writes, or stands still, when its leader dies",
    uses=("cluster-3",),
    other_arches="gate",
)
def test_the_leaders_power_is_cut(cluster: Cluster, fault_seed: int) -> None:
    """Another one leads; the lost one comes back and catches up."""
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(20)
        lost = cluster.leader()
        lost.power_cut()
        clients.wait_acknowledged(20)
        assert cluster.leader().name != lost.name
        cluster.power_on(lost)
        cluster.wait_healthy()
        clients.wait_acknowledged(20)


@pytest.mark.tier(
    "gate", cost=60, catches="a member that cannot catch up by itself", uses=("cluster-3",)
)
def test_a_node_returns_after_long(cluster: Cluster, fault_seed: int) -> None:
    """A member that missed many writes serves the newest ones when it is back."""
    absent, *_ = cluster.followers()
    with cluster.history(seed=fault_seed, rate=50.0) as clients:
        absent.power_cut()
        clients.wait_acknowledged(300)
        (back,) = cluster.power_on(absent)
        cluster.wait_healthy(back)
        newest = "newest"
        cluster.provider.write(cluster.leader(), newest, "value")
        assert cluster.provider.read(back, newest) == "value"


@pytest.mark.tier(
    "gate",
    cost=90,
    catches="a cluster that does not come up again after all were off",
    uses=("cluster-3",),
)
def test_a_full_stop_and_a_cold_start(cluster: Cluster, fault_seed: int) -> None:
    """The power of all goes at one moment; all come up by themselves with what was acknowledged."""
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(30)
        cluster.power_cut()
        cluster.power_on()
        cluster.wait_healthy()
        clients.wait_acknowledged(20)


@pytest.mark.tier(
    "nightly",
    cost=60,
    catches="a full disk that takes the cluster down, or a member that cannot store and says yes",
    uses=("cluster-3",),
)
@pytest.mark.needs("upgrade")
def test_the_disk_of_one_is_full(cluster: Cluster, fault_seed: int) -> None:
    """The others serve on; with room again, the member is healthy after a restart at the latest."""
    full, *_ = cluster.followers()
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        full.os.fill_state(0)
        clients.wait_acknowledged(30)
        cluster.wait_healthy(*cluster.others(full))
        full.os.free_state()
        full.reboot()
        cluster.wait_healthy()
        clients.wait_acknowledged(10)


@pytest.mark.tier(
    "nightly", cost=60, catches="a slow disk of one that stops all", uses=("cluster-3",)
)
def test_the_disk_of_one_is_slow(image: Selection, cluster: Cluster, fault_seed: int) -> None:
    """Writes need a majority, and two of three are fast."""
    slow = cluster.leader()
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        with slow.slow_disk(points.system_disk(image), requests=10):
            clients.wait_acknowledged(30)
        cluster.wait_healthy()


@pytest.mark.tier(
    "nightly",
    cost=60,
    catches="a member that stands still and goes on as a second leader",
    uses=("cluster-3",),
)
def test_the_leader_stands_still_for_a_while(cluster: Cluster, fault_seed: int) -> None:
    """A leader that is paused and goes on finds that it has been replaced."""
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        before = cluster.leader()
        before.pause()
        others = cluster.others(before)
        cluster.wait_healthy(*others)
        assert cluster.leader(via=others[0]).name != before.name
        clients.wait_acknowledged(10)
        before.resume()
        cluster.wait_healthy()
        clients.wait_acknowledged(10)
