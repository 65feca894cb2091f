"""Versions that do not come up: the machine falls back to the old slot by itself and records it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from harness import Defect, Lab, Machine, Releases, Rollbackable, UpdateServer, Upgradable, points

pytestmark = pytest.mark.needs("upgrade", "rollback", "ssh")


class FallsBack(Upgradable, Rollbackable, Protocol):
    """Upgrades, and falls back from a version that does not come up."""


@pytest.fixture
def machine(lab: Lab, update_server: UpdateServer) -> Machine[FallsBack]:
    """Return an installed system of the old version that reaches the update server and trusts it."""
    machine: Machine[FallsBack] = lab.fork(points.settled, services=[update_server])
    machine.os.trust(lab.ca.pem)
    return machine


def check_given_up(
    machine: Machine[FallsBack], first: str, second: str, releases: Releases, bad: str
) -> None:
    """Check that the old version runs from its slot, and that the other slot has no tries left."""
    assert (machine.os.version(), machine.os.slot()) == (releases.old, first)
    machine.os.wait_good()
    slots = {slot.name: slot for slot in machine.os.slots()}
    assert (slots[first].version, slots[first].state) == (releases.old, "good")
    other, tries = slots[second], machine.os.tries
    assert (other.version, other.state) == (bad, "bad")
    assert (other.tries_left, other.tries_done) == ((None, None) if tries is None else (0, tries))
    boots = [(boot.version, boot.slot, boot.outcome) for boot in machine.os.boot_record()]
    assert (bad, second, "failed") in boots


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(
            "panic",
            marks=pytest.mark.tier(
                "smoke",
                cost=115,
                catches="a version that panics and is tried for ever, or whose failure nobody records",
                uses=("settled", "panic"),
                other_arches="gate",
            ),
        ),
        pytest.param(
            "unhealthy",
            marks=pytest.mark.tier(
                "gate",
                cost=125,
                catches="a version that comes up, fails its health check, and is kept",
                uses=("settled", "unhealthy"),
            ),
        ),
        pytest.param(
            "verity",
            marks=pytest.mark.tier(
                "nightly",
                cost=125,
                catches="a root that was published damaged, and is run",
                uses=("settled", "verity"),
            ),
        ),
        pytest.param(
            "stuck",
            marks=pytest.mark.tier(
                "nightly",
                cost=330,
                catches="a version that hangs before its health check, and stays",
                uses=("settled", "stuck"),
            ),
        ),
    ],
)
def test_a_broken_version_is_given_up(
    machine: Machine[FallsBack],
    publish: Callable[[str], str],
    releases: Releases,
    defect: Defect,
) -> None:
    """Within its tries the old version is back, has its state, and records which version failed."""
    bad = releases.broken(defect)
    first, second = machine.os.slot(), machine.os.other_slot()
    kept = f"{machine.os.state_folder}/kept"
    machine.succeed(machine.os.as_root(f"echo kept > {kept}"))
    machine.os.upgrade(publish(bad))
    machine.os.fall_back()
    check_given_up(machine, first, second, releases, bad)
    assert machine.succeed(f"cat {kept}") == "kept\n"


@pytest.mark.tier(
    "nightly",
    cost=115,
    catches="a root that fails verification and hangs its boot instead of ending it",
    uses=("settled", "new"),
)
@pytest.mark.needs("verity")
def test_a_slot_that_cannot_be_verified_is_given_up(
    machine: Machine[FallsBack], publish: Callable[[str], str], releases: Releases
) -> None:
    """The hashes of the root are overwritten: the root never mounts, and each try counts."""
    first, second = machine.os.slot(), machine.os.other_slot()
    machine.os.upgrade(publish(releases.new))
    machine.os.damage(second, "hashes")
    machine.os.fall_back()
    check_given_up(machine, first, second, releases, releases.new)
