"""Upgrades that succeed: into the other slot, by HTTPS and from a registry, and back."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Protocol

import pytest

from harness import (
    Lab,
    Machine,
    Registry,
    Releases,
    Rollbackable,
    UpdateServer,
    Upgradable,
    errors,
    points,
)

pytestmark = pytest.mark.needs("upgrade", "ssh")

Address = Callable[[str], str]


class UpgradesAndRollsBack(Upgradable, Rollbackable, Protocol):
    """Upgrades, and rolls back by command and from the boot menu."""


@pytest.fixture
def machine(
    lab: Lab, update_server: UpdateServer, registry: Registry
) -> Machine[UpgradesAndRollsBack]:
    """Return an installed system of the old version that reaches both servers and trusts their CA."""
    machine: Machine[UpgradesAndRollsBack] = lab.fork(
        points.settled, services=[update_server, registry]
    )
    machine.os.trust(lab.ca.pem)
    return machine


def run(
    machine: Machine[UpgradesAndRollsBack], source: str, version: str, *, older: bool = False
) -> None:
    """Upgrade, reboot, and check that this version runs from the other slot and is found good."""
    before, slot, tries = machine.os.version(), machine.os.other_slot(), machine.os.tries
    machine.os.upgrade(source, allow_downgrade=older)
    assert machine.os.version() == before, "the running version changes with a reboot only"
    slots = {each.name: (each.version, each.state, each.tries_left) for each in machine.os.slots()}
    assert slots[slot] == (version, "good" if tries is None else "trying", tries)
    machine.reboot()
    assert (machine.os.version(), machine.os.slot()) == (version, slot)
    machine.os.wait_good()
    states = {each.name: (each.version, each.state) for each in machine.os.slots()}
    assert states[slot] == (version, "good")
    last = machine.os.boot_record()[-1]
    assert (last.version, last.slot, last.outcome) == (version, slot, "good")


@pytest.mark.tier(
    "smoke",
    cost=60,
    catches="a new version that does not run, or an upgrade that loses state",
    uses=("settled", "new"),
    other_arches="gate",
)
def test_an_upgrade_changes_version_and_slot_and_keeps_state(
    machine: Machine[UpgradesAndRollsBack], publish: Address, releases: Releases
) -> None:
    """The new version runs from the other slot; the state and the identity are as before."""
    kept = f"{machine.os.state_folder}/kept"
    machine.succeed(machine.os.as_root(f"echo kept > {kept}"))
    identity, slot = machine.os.identity(), machine.os.other_slot()
    run(machine, publish(releases.new), releases.new)
    assert machine.os.slots_written() == ["boot", slot], "the running slot keeps every byte"
    assert machine.succeed(f"cat {kept}") == "kept\n"
    assert machine.os.identity() == identity
    machine.os.wait_running()


@pytest.mark.tier(
    "gate",
    cost=75,
    catches="a registry whose artifacts cannot be used, or a downgrade that nobody allowed",
    uses=("settled", "new"),
)
def test_an_upgrade_from_a_registry(
    machine: Machine[UpgradesAndRollsBack], publish: Address, push: Address, releases: Releases
) -> None:
    """The new version comes as an OCI artifact, and is not left for an older one unasked."""
    run(machine, push(releases.new), releases.new)
    with pytest.raises(errors.UpgradeRefusedError) as caught:
        machine.os.upgrade(publish(releases.old))
    assert machine.os.says("older", caught.value.what)


@pytest.mark.tier(
    "nightly",
    cost=130,
    catches="a downgrade that is refused although it was allowed, or does not run",
    uses=("settled", "new"),
)
def test_a_downgrade_that_is_allowed(
    machine: Machine[UpgradesAndRollsBack], publish: Address, releases: Releases
) -> None:
    """The way back must be allowed, and then the old version runs from its slot."""
    run(machine, publish(releases.new), releases.new)
    run(machine, publish(releases.old), releases.old, older=True)


@pytest.mark.tier(
    "gate",
    cost=10,
    catches="a machine that writes its slots at every check for updates",
    uses=("settled",),
)
def test_the_same_version_again_is_a_no_op(
    machine: Machine[UpgradesAndRollsBack],
    publish: Address,
    update_server: UpdateServer,
    releases: Releases,
) -> None:
    """Nothing is written to any slot when the version is installed already."""
    before = machine.os.slots()
    written = [] if machine.origin is not None else machine.os.slots_written()
    machine.os.upgrade(publish(releases.old))
    assert machine.os.slots() == before
    assert machine.os.slots_written() == written
    fetched = [request.path for request in update_server.requests]
    assert fetched, "it asked the server for its versions"
    payload = [machine.os.update_files[name] for name in ("root", "kernel")]
    assert not [path for path in fetched if any(fnmatch(path, each) for each in payload)]


@pytest.mark.tier(
    "gate",
    cost=170,
    catches="an old version that is gone when it is needed, or a rollback that does not last",
    uses=("settled", "new"),
)
@pytest.mark.needs("rollback")
def test_rollback_by_command(
    machine: Machine[UpgradesAndRollsBack], publish: Address, releases: Releases
) -> None:
    """After a rollback the old version runs, and still runs after another reboot."""
    slot = machine.os.slot()
    run(machine, publish(releases.new), releases.new)
    machine.os.rollback()
    for _ in range(2):
        machine.reboot()
        assert (machine.os.version(), machine.os.slot()) == (releases.old, slot)
        machine.os.wait_good()


@pytest.mark.tier(
    "nightly",
    cost=145,
    catches="an old version that has no entry in the menu once the new one is good",
    uses=("settled", "new"),
)
@pytest.mark.needs("rollback")
def test_rollback_by_the_boot_menu(
    machine: Machine[UpgradesAndRollsBack], publish: Address, releases: Releases
) -> None:
    """A person at the console chooses the old entry, for this boot alone."""
    slot = machine.os.slot()
    run(machine, publish(releases.new), releases.new)
    machine.os.choose_entry(releases.old)
    assert (machine.os.version(), machine.os.slot()) == (releases.old, slot)
    machine.reboot()
    assert machine.os.version() == releases.new


@pytest.mark.tier(
    "nightly",
    cost=215,
    catches="a slot that is taken twice in a row",
    uses=("settled", "new", "newest"),
)
def test_two_upgrades_in_a_row_then_a_downgrade(
    machine: Machine[UpgradesAndRollsBack], publish: Address, releases: Releases
) -> None:
    """Each upgrade goes to the slot that does not run."""
    newest = releases.newest
    first, second = machine.os.slot(), machine.os.other_slot()
    run(machine, publish(releases.new), releases.new)
    assert machine.os.slot() == second
    run(machine, publish(newest), newest)
    assert machine.os.slot() == first
    run(machine, publish(releases.old), releases.old, older=True)
    assert machine.os.slot() == second


@pytest.mark.tier(
    "nightly",
    cost=100,
    catches="an upgrade that races with the machine it runs on",
    uses=("settled", "new"),
)
def test_an_upgrade_under_load(
    machine: Machine[UpgradesAndRollsBack], publish: Address, releases: Releases
) -> None:
    """It succeeds while every CPU is busy and the state is written to."""
    machine.succeed(
        "for n in 1 2; do (while :; do :; done) > /dev/null 2>&1 & done;"
        " (while :; do dd if=/dev/zero of=$HOME/load bs=1M count=20 conv=fsync; done)"
        " > /dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("test -s $HOME/load")
    run(machine, publish(releases.new), releases.new)
