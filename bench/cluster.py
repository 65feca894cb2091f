"""A cluster of skiff: forming it, forking it healthy, losing its leader, and nine members at once."""

from __future__ import annotations

import time
from typing import Final

from bench.core import Budget, Context, Row, missing
from bench.labs import lab
from harness.cluster import Cluster
from harness.errors import HarnessError
from harness.lab import Lab
from harness.points import cluster_3, member

FORM: Final = "three machines to a healthy cluster"
FORK: Final = "fork of a cluster of 3 to all healthy"
FAILOVER: Final = "power cut of the leader to a write acknowledged"
MANY: Final = 9
FORK_BUDGET: Final = Budget(5.0)

LABGRID: Final = "it has no network between machines"


def run(context: Context) -> list[Row]:
    """Fork the state again and again; then form clusters from nothing."""
    forks, failovers = [], []
    with lab(context, "skiff") as here:
        here.with_image("skiff/cluster").state(cluster_3)
        for number in range(context.pick(5, 2)):
            with here.child(f"fork {number}") as own:
                began = time.perf_counter()
                cluster = own.fork_cluster(cluster_3)
                cluster.wait_healthy()
                forks.append(time.perf_counter() - began)
                failovers.append(_fail_over(cluster))
            context.say(f"fork {number}: {forks[-1]:.1f} s, leader lost for {failovers[-1]:.1f} s")
        formed = [_form(context, here, 3) for _ in range(context.pick(3, 1))]
        many = _many(context, here) if context.pick(1, 0) else []
    return [
        Row(FORK, "harness", "s", tuple(forks), budget=FORK_BUDGET),
        Row(FAILOVER, "etcd on skiff", "s", tuple(failovers)),
        Row(FORM, "harness", "s", tuple(formed)),
        *many,
        missing(FORM, "labgrid", "s", LABGRID),
    ]


def _many(context: Context, here: Lab) -> list[Row]:
    """Form a large cluster; a host that cannot carry it loses this row alone."""
    what = f"{MANY} machines to a healthy cluster"
    try:
        return [Row(what, "harness", "s", (_form(context, here, MANY),))]
    except HarnessError as error:
        return [missing(what, "harness", "s", error.what)]


def _fail_over(cluster: Cluster) -> float:
    """Return the seconds in which no client's operation is acknowledged after the leader is lost."""
    with cluster.history(seed=1, reads=0.0, rate=20.0, check=False) as clients:
        clients.wait_acknowledged(10)
        leader = cluster.leader()
        began = time.perf_counter()
        leader.power_cut()
        # More than what was on its way, and more than one client's.
        clients.wait_acknowledged(10)
        return time.perf_counter() - began


def _form(context: Context, here: Lab, size: int) -> float:
    """Return the seconds from a saved member to a healthy cluster of a size."""
    image = here.with_image("skiff/cluster")
    image.state(member)
    with here.child(f"cluster of {size}") as own:
        began = time.perf_counter()
        cluster = own.cluster(size)
        cluster.form(together=True)
        seconds = time.perf_counter() - began
        count = len(cluster.members())
    context.say(f"a cluster of {count}: {seconds:.1f} s")
    if count != size:
        raise RuntimeError(f"{count} members, not {size}")
    return seconds
