"""Joining: one by one, all at once, found by themselves; and those that have to be refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import (
    Cluster,
    Install,
    Lab,
    Machine,
    SeedInstallable,
    errors,
    points,
    profile_of,
)

pytestmark = pytest.mark.needs("cluster", "ssh")


def check_serves(cluster: Cluster, seed: int) -> None:
    """Check that the cluster serves, and that what its clients saw holds."""
    with cluster.history(seed=seed) as clients:
        clients.wait_acknowledged(20)


def check_joined(cluster: Cluster, node: Machine[Any], seed: int) -> None:
    """Check that a machine that boots becomes a member by itself, and that the cluster serves."""
    node.os.login()
    cluster.adopt(node)
    cluster.wait_healthy(node)
    assert node.name in {member.name for member in cluster.members()}
    check_serves(cluster, seed=seed)


@pytest.mark.tier(
    "gate",
    cost=90,
    catches="a join that only works one after the other",
    uses=("member",),
)
def test_all_join_at_once_and_discover_the_cluster(lab: Lab, fault_seed: int) -> None:
    """The others find the first by themselves, join at the same time, and are voters then."""
    cluster = lab.cluster(3)
    cluster.form(together=True, discover=True)
    assert [(member.name, member.voter) for member in cluster.members()] == [
        (name, True) for name in sorted(cluster.machines)
    ]
    check_serves(cluster, seed=fault_seed)


@pytest.mark.tier(
    "gate", cost=60, catches="a member that never counts for the majority", uses=("cluster-3",)
)
def test_a_fourth_joins_and_leaves(cluster: Cluster, fault_seed: int) -> None:
    """Membership changes while clients write; nothing that was acknowledged is lost."""
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        fourth = cluster.add()
        assert fourth.name in {member.name for member in cluster.members() if member.voter}
        clients.wait_acknowledged(10)
        cluster.remove(fourth)
        assert fourth.name not in {member.name for member in cluster.members()}
        clients.wait_acknowledged(10)


@pytest.mark.tier(
    "gate",
    cost=70,
    catches="a stranger who becomes a member, or a refusal that harms the cluster",
    uses=("cluster-3",),
)
def test_who_has_no_right_to_join_is_refused(cluster: Cluster, fault_seed: int) -> None:
    """A wrong token, an expired one, a name that is taken, a wrong clock; then the right way works."""
    provider, via = cluster.provider, cluster.leader()
    before = cluster.members()
    (stranger,) = cluster.new()
    good = provider.token(via)

    def refused(reason: str, token: str) -> None:
        with pytest.raises(errors.JoinRefusedError) as caught:
            provider.join(stranger, via, token=token)
        assert caught.value.reason == reason
        assert cluster.members() == before
        assert not provider.healthy(stranger)

    with cluster.history(seed=fault_seed) as clients:
        flipped = "0" if good[-1] != "0" else "1"
        refused("wrong-token", good[:-1] + flipped)
        short = provider.token(via, lifetime=1)
        created = int(via.succeed("date +%s"))
        via.wait_until_succeeds(f"test $(date +%s) -gt {created + 1}")
        refused("expired-token", short)
        provider.prepare(stranger, list(cluster), name=via.name)
        refused("duplicate-name", good)
        provider.prepare(stranger, list(cluster))
        now = stranger.succeed("date +%s").strip()
        stranger.succeed(stranger.os.as_root(f"date -s @{int(now) + 3600}"))
        refused("clock", good)
        stranger.succeed(stranger.os.as_root(f"date -s @{now}"))
        clients.wait_acknowledged(20)
    provider.join(stranger, via, token=good)
    cluster.wait_healthy()
    assert len(cluster.members()) == len(before) + 1


@pytest.mark.tier(
    "nightly",
    cost=120,
    catches="a member of a version that the cluster cannot work with",
    uses=("cluster-3",),
)
def test_a_version_too_far_ahead_is_refused(lab: Lab, cluster: Cluster, fault_seed: int) -> None:
    """Two versions ahead is too many."""
    image = cluster.leader().os.selection
    versions = [version for version in image.versions if version.isdigit()]
    if len(versions) < 3:
        pytest.skip(
            f"image {image.name} has fewer than three versions: build one, name it in {image.path}"
        )
    ahead = lab.with_image(f"{image.name}/{image.variant}:{versions[2]}")
    newcomer: Machine[Any]
    (newcomer,) = ahead.fork_together(points.member, ["node-9"], segments=[cluster.segment])
    before = cluster.members()
    cluster.provider.prepare(newcomer, [*cluster, newcomer])
    with pytest.raises(errors.JoinRefusedError) as caught:
        cluster.provider.join(newcomer, cluster.leader())
    assert caught.value.reason == "version"
    assert cluster.members() == before
    check_serves(cluster, seed=fault_seed)


@pytest.mark.tier(
    "nightly",
    cost=150,
    catches="a member whose data or name survives its reset",
    uses=("cluster-3",),
)
@pytest.mark.needs("reset")
def test_a_node_that_was_reset_joins_again(cluster: Cluster, fault_seed: int) -> None:
    """The cluster forgets it, it is reset, and joins under its old name with the cluster's data."""
    node, *_ = cluster.followers()
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        cluster.provider.leave(node.name, cluster.leader())
        node.os.reset()
        cluster.provider.prepare(node, list(cluster))
        cluster.join(node)
        clients.wait_acknowledged(10)
    assert len(cluster.members()) == len(cluster)


@pytest.mark.tier(
    "nightly", cost=90, catches="a dead member that can never be replaced", uses=("cluster-3",)
)
def test_a_dead_member_is_replaced(cluster: Cluster, fault_seed: int) -> None:
    """A member whose machine is lost for good is removed; another takes its place."""
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        lost, *_ = cluster.followers()
        lost.power_cut()
        cluster.remove(lost)
        new = cluster.add()
        clients.wait_acknowledged(10)
    assert {member.name for member in cluster.members()} == set(cluster.machines)
    assert new.name in cluster.machines


@pytest.mark.tier(
    "nightly",
    cost=140,
    catches="a node whose credential says join, and that does not",
    uses=("cluster-3",),
)
@pytest.mark.needs("credentials")
def test_a_node_joins_by_a_credential(lab: Lab, cluster: Cluster, fault_seed: int) -> None:
    """A system that is started with a token in a credential is a member at its first boot."""
    via = cluster.leader()
    name = "node-7"
    here = lab.with_image(via.os.selection.reference)
    node = here.boot(
        name=name,
        nics=points.member_nics(here.image),
        segments=[cluster.segment],
        credentials={via.os.cluster_credential: cluster.provider.configuration(name, via)},
    )
    check_joined(cluster, node, seed=fault_seed)


@pytest.mark.tier(
    "nightly",
    cost=140,
    catches="a node whose installation was told to join, and that does not",
    uses=("cluster-3",),
)
@pytest.mark.needs("install-unattended", "seed")
def test_a_node_joins_by_the_seed_of_its_installation(
    lab: Lab, cluster: Cluster, answers: Install, fault_seed: int
) -> None:
    """A system that was installed with a token in its seed is a member at its first boot."""
    via = cluster.leader()
    name = "node-8"
    here = lab.with_image(via.os.selection.reference)
    profile: type[SeedInstallable] = profile_of(here.image)
    configuration = cluster.provider.configuration(name, via)
    installer: Machine[SeedInstallable] = here.boot(
        name="live",
        disks=[points.target_disk(here.image)],
        seed_files=profile.seed(replace(answers, cluster=configuration)),
        authorize=False,
    )
    installer.os.wait_installed()
    installer.wait_for_shutdown()
    node = points.boot_installed(
        here,
        points.installed_disk(installer),
        name,
        nics=points.member_nics(here.image),
        segments=[cluster.segment],
    )
    check_joined(cluster, node, seed=fault_seed)
