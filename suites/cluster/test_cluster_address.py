"""The virtual address: one member has it, and another takes it over."""

from __future__ import annotations

import pytest

from harness import Cluster

pytestmark = pytest.mark.needs("cluster", "ssh")

PROMISED = 20.0
"""Seconds of a good host within which another member has the address."""


@pytest.mark.tier(
    "gate",
    cost=70,
    catches="an address that nobody takes over, or that two members have",
    uses=("cluster-3",),
)
@pytest.mark.parametrize("how", ["power cut", "parted"])
def test_the_virtual_address_moves(cluster: Cluster, how: str) -> None:
    """It moves when its member dies or stands alone, and two never have it."""
    with cluster.watching_address() as watch:
        before = cluster.wait_holder()
        if how == "power cut":
            before.power_cut()
            after = cluster.wait_holder(*cluster.others(before), deadline=PROMISED)
            (before,) = cluster.power_on(before)
        else:
            with cluster.partition(before, cluster.others(before)):
                after = cluster.wait_holder(*cluster.others(before), deadline=PROMISED)
        assert after.name != before.name
        cluster.wait_healthy()
        cluster.wait_holder()
    assert watch.held_twice == [], "the members that had it at the same time"
