"""Versions that do not come up: the machine goes back to the old slot by itself and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.releases import How, Releases
from fixtures.states import ForkOf
from harness.machine import Machine
from harness.services import Ca, UpdateServer
from suites.conftest import settled

pytestmark = pytest.mark.needs("upgrade", "rollback", "ssh")


@pytest.fixture
def machine(fork_of: ForkOf, update_server: UpdateServer, ca: Ca) -> Machine:
    """An installed system of the old version that reaches the update server and trusts it."""
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    return machine


def check_given_up(machine: Machine, first: str, second: str, releases: Releases, bad: str) -> None:
    """Check that the old version runs from its slot, and that the other has no tries left."""
    assert (machine.os.version(), machine.os.slot()) == (releases.old, first)
    machine.os.wait_good()
    slots = {each.name: each for each in machine.os.slots()}
    assert (slots[first].version, slots[first].state) == (releases.old, "good")
    other, tries = slots[second], machine.os.tries
    assert (other.version, other.state) == (bad, "bad")
    assert (other.tries_left, other.tries_done) == ((None, None) if tries is None else (0, tries))
    told = [(each.version, each.slot, each.outcome) for each in machine.os.boot_record()]
    assert (bad, second, "failed") in told


@pytest.mark.parametrize(
    "how",
    [
        "panic",
        "unhealthy",
        # A panic, too, a little later; and a wait of a minute and a half for each try.
        pytest.param("verity", marks=pytest.mark.nightly),
        pytest.param("stuck", marks=pytest.mark.nightly),
    ],
)
def test_a_broken_version_is_given_up(
    machine: Machine, publish: Callable[[str], str], releases: Releases, how: How
) -> None:
    """Within its tries the old version is back, knows its state, and tells which one failed."""
    bad = releases.broken(how)
    first, second = machine.os.slot(), machine.os.other_slot()
    kept = f"{machine.os.state_folder}/kept"
    machine.succeed(machine.os.as_root(f"echo kept > {kept}"))
    machine.os.upgrade(publish(bad))
    machine.os.fall_back()
    check_given_up(machine, first, second, releases, bad)
    assert machine.succeed(f"cat {kept}") == "kept\n"


@pytest.mark.nightly
@pytest.mark.needs("verity")
def test_a_slot_that_cannot_be_verified_is_given_up(
    machine: Machine, publish: Callable[[str], str], releases: Releases
) -> None:
    """The data that the root is checked by is gone: the root never mounts, and each try counts."""
    first, second = machine.os.slot(), machine.os.other_slot()
    machine.os.upgrade(publish(releases.new))
    machine.os.damage(second, "hashes")
    machine.os.fall_back()
    check_given_up(machine, first, second, releases, releases.new)
