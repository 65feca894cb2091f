"""Upgrades from one address for several architectures: each system takes its own, or refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness import (
    ForArches,
    Lab,
    Machine,
    MultiArch,
    Registry,
    Releases,
    Selection,
    UpdateFiles,
    UpdateServer,
    errors,
    points,
)

pytestmark = pytest.mark.needs("upgrade", "multi-arch", "ssh")

Sets = Sequence[tuple[str, Sequence[Path]]]
"""Architectures, and the files of an update for each."""


@pytest.fixture
def machine(lab: Lab, update_server: UpdateServer, registry: Registry) -> Machine[MultiArch]:
    """Return an installed system of the old version that reaches both servers and trusts their CA."""
    machine: Machine[MultiArch] = lab.fork(points.settled, services=[update_server, registry])
    machine.os.trust(lab.ca.pem)
    return machine


@pytest.fixture(params=["registry", "server"])
def for_arches(
    request: pytest.FixtureRequest, push_arches: ForArches, publish_arches: ForArches
) -> ForArches:
    """Return what makes one address for several architectures."""
    return push_arches if request.param == "registry" else publish_arches


@pytest.fixture
def others(image: Selection, update_files: UpdateFiles, releases: Releases) -> Sets:
    """Return sets of the other architectures.

    Stand-ins: the old version of the image's own, which is whole and signed. A system that takes one of
    them installs nothing.
    """
    return [(arch, update_files(releases.old)) for arch in image.other_arches]


def refused(machine: Machine[MultiArch], source: str) -> str:
    """Check that the system refuses and writes no slot; return its reason."""
    slots = machine.os.slots()
    with pytest.raises(errors.UpgradeRefusedError) as caught:
        machine.os.upgrade(source)
    assert machine.os.slots() == slots
    assert not set(machine.os.slot_names) & set(machine.os.slots_written())
    return caught.value.what


def prepared(machine: Machine[MultiArch]) -> str:
    """Return the version in the slot that is not running."""
    slots = {slot.name: slot.version for slot in machine.os.slots()}
    return slots[machine.os.other_slot()]


@pytest.mark.tier(
    "gate",
    cost=35,
    catches="a system that takes the update of another architecture",
    uses=("settled", "new"),
)
def test_one_address_for_all_architectures(
    image: Selection,
    machine: Machine[MultiArch],
    for_arches: ForArches,
    update_files: UpdateFiles,
    releases: Releases,
    others: Sets,
) -> None:
    """The system installs the files of its own architecture, with others before and behind them."""
    own = (image.arch, update_files(releases.new))
    machine.os.upgrade(for_arches(releases.new, [*others, own, *others]))
    assert prepared(machine) == releases.new


@pytest.mark.tier(
    "nightly",
    cost=35,
    catches="an index with two entries for one architecture that is read from its end",
    uses=("settled", "new"),
)
def test_the_first_of_two_entries_for_one_architecture(
    image: Selection,
    machine: Machine[MultiArch],
    push_arches: ForArches,
    update_files: UpdateFiles,
    releases: Releases,
) -> None:
    """The first entry counts: OCI image specification, image-index.md."""
    files = [update_files(version) for version in (releases.new, releases.old)]
    machine.os.upgrade(push_arches(releases.new, [(image.arch, each) for each in files]))
    assert prepared(machine) == releases.new


@pytest.mark.tier(
    "gate",
    cost=10,
    catches="a system that makes do with any update, where there is none for it",
    uses=("settled",),
)
def test_no_update_for_the_architecture(
    machine: Machine[MultiArch], for_arches: ForArches, releases: Releases, others: Sets
) -> None:
    """The address has updates for other architectures alone: the system refuses and says so."""
    assert machine.os.says("architecture", refused(machine, for_arches("others", others)))


@pytest.mark.tier(
    "nightly",
    cost=20,
    catches="an update for another architecture that is taken as it has a good signature",
    uses=("settled",),
)
def test_an_update_for_another_architecture_under_the_right_name(
    image: Selection,
    machine: Machine[MultiArch],
    for_arches: ForArches,
    update_files: UpdateFiles,
    releases: Releases,
) -> None:
    """The release mixed the architectures up: the system sees it before it writes."""
    others = [arch for arch in image.other_arches if arch in image.definition.arches]
    if not others:
        pytest.skip(f"image {image.name} has one architecture: add another in {image.path}")
    try:
        files = update_files(releases.new, others[0])
    except errors.BuildError as error:
        # Not every host can run the programs of another architecture.
        pytest.skip(f"image {image.name} cannot be built for {others[0]} here: {error.what}")
    mixed = [(image.arch, files)]
    assert machine.os.says("architecture", refused(machine, for_arches("mixed", mixed)))
