"""Versions that do not come up: the machine goes back to the old slot by itself and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.states import ForkOf
from harness.catalog import Selection
from harness.services import Ca, UpdateServer
from suites.conftest import settled

pytestmark = pytest.mark.needs("upgrade", "rollback", "ssh")


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
    fork_of: ForkOf,
    update_server: UpdateServer,
    ca: Ca,
    publish: Callable[[str], str],
    image: Selection,
    how: str,
) -> None:
    """Within its tries the old version is back, knows its state, and tells which one failed."""
    bad = f"2-{how}"
    if bad not in image.image.versions:
        pytest.skip(f"image {image.name} has no version {bad}: build one, name it in image.yaml")
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    machine.succeed(machine.os.as_root("echo kept > /var/kept"))
    machine.os.upgrade(publish(bad))
    machine.os.fall_back()
    assert (machine.os.version(), machine.os.slot()) == ("1", "a")
    machine.os.wait_good()
    slots = {each.name: each for each in machine.os.slots()}
    assert (slots["a"].version, slots["a"].state) == ("1", "good")
    assert (slots["b"].version, slots["b"].state, slots["b"].tries_left) == (bad, "bad", 0)
    assert machine.succeed("cat /var/kept") == "kept\n"
    told = [(each.version, each.slot, each.outcome) for each in machine.os.boot_record()]
    assert (bad, "b", "failed") in told


@pytest.mark.nightly
def test_a_slot_that_cannot_be_verified_is_given_up(
    fork_of: ForkOf, update_server: UpdateServer, ca: Ca, publish: Callable[[str], str]
) -> None:
    """The data that the root is checked by is gone: the root never mounts, and each try counts."""
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    machine.os.upgrade(publish("2"))
    machine.os.damage("b", "hashes")
    machine.os.fall_back()
    assert (machine.os.version(), machine.os.slot()) == ("1", "a")
    machine.os.wait_good()
    slots = {each.name: each for each in machine.os.slots()}
    assert (slots["b"].version, slots["b"].state, slots["b"].tries_left) == ("2", "bad", 0)
