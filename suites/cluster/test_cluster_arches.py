"""Clusters of several architectures."""

from __future__ import annotations

import pytest

from harness import Cluster, ForArches, Lab, Releases, Selection, UpdateFiles, UpdateServer

pytestmark = pytest.mark.needs("cluster", "upgrade", "multi-arch", "ssh")


@pytest.fixture
def arches(image: Selection) -> list[str]:
    """Return the architectures of three members: one of the first, two of the second."""
    names = list(image.definition.arches)
    if len(names) < 2:
        pytest.skip(f"image {image.name} has one architecture: name another in {image.path}")
    return [names[0], names[1], names[1]]


@pytest.mark.tier(
    "nightly",
    cost=600,
    catches="members that do not understand each other, or take an update for another architecture",
    uses=("member", "new"),
)
def test_members_of_two_architectures(
    lab: Lab,
    arches: list[str],
    update_server: UpdateServer,
    update_files: UpdateFiles,
    publish_arches: ForArches,
    releases: Releases,
    fault_seed: int,
) -> None:
    """They form, lose one and take it back, and each upgrades from one source to its own files."""
    cluster: Cluster = lab.cluster(arches=arches, services=[update_server])
    cluster.form()
    variant = cluster["node-1"].os.selection.variant
    sets = [(arch, update_files(releases.new, arch, variant)) for arch in dict.fromkeys(arches)]
    with cluster.history(seed=fault_seed) as clients:
        clients.wait_acknowledged(10)
        lost = cluster.leader()
        lost.power_cut()
        clients.wait_acknowledged(10)
        cluster.power_on(lost)
        cluster.wait_healthy()
        for machine in cluster:
            machine.os.trust(lab.ca.pem)
        cluster.rolling_upgrade(publish_arches(releases.new, sets), releases.new)
        clients.wait_acknowledged(10)
    assert [machine.spec.arch for machine in cluster] == arches
    assert {machine.os.version() for machine in cluster} == {releases.new}
