"""Upgrades that take: into the other slot, by HTTPS and from a registry, and back."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch

import pytest

from fixtures.releases import Releases
from fixtures.states import ForkOf
from harness.errors import UpgradeRefusedError
from harness.machine import Machine
from harness.services import Ca, Registry, UpdateServer
from suites.conftest import settled

pytestmark = pytest.mark.needs("upgrade", "ssh")

Address = Callable[[str], str]


@pytest.fixture
def machine(fork_of: ForkOf, update_server: UpdateServer, registry: Registry, ca: Ca) -> Machine:
    """An installed system of the old version that reaches both servers and trusts their CA."""
    machine = fork_of(settled, services=[update_server, registry])
    machine.os.trust(ca.pem)
    return machine


def run(machine: Machine, source: str, version: str, *, older: bool = False) -> None:
    """Upgrade, restart, and check that it is this version from the other slot, and found good."""
    before, slot, tries = machine.os.version(), machine.os.other_slot(), machine.os.tries
    machine.os.upgrade(source, allow_downgrade=older)
    assert machine.os.version() == before, "what runs changes with a reboot only"
    made = {each.name: (each.version, each.state, each.tries_left) for each in machine.os.slots()}
    assert made[slot] == (version, "good" if tries is None else "trying", tries)
    machine.reboot()
    assert (machine.os.version(), machine.os.slot()) == (version, slot)
    machine.os.wait_good()
    states = {each.name: (each.version, each.state) for each in machine.os.slots()}
    assert states[slot] == (version, "good")
    last = machine.os.boot_record()[-1]
    assert (last.version, last.slot, last.outcome) == (version, slot, "good")


def test_an_upgrade_changes_version_and_slot_and_keeps_state(
    machine: Machine, publish: Address, releases: Releases
) -> None:
    """The new version runs from the other slot; the state and who the machine is are as before."""
    kept = f"{machine.os.state_folder}/kept"
    machine.succeed(machine.os.as_root(f"echo kept > {kept}"))
    identity, slot = machine.os.identity(), machine.os.other_slot()
    run(machine, publish(releases.new), releases.new)
    assert machine.os.slots_written() == ["boot", slot], "the slot that ran is as it was"
    assert machine.succeed(f"cat {kept}") == "kept\n"
    assert machine.os.identity() == identity
    machine.os.wait_running()


def test_an_upgrade_from_a_registry_and_a_downgrade(
    machine: Machine, publish: Address, push: Address, releases: Releases
) -> None:
    """The new version comes as an OCI artifact; then back to the old one, which has to be allowed."""
    run(machine, push(releases.new), releases.new)
    with pytest.raises(UpgradeRefusedError) as caught:
        machine.os.upgrade(publish(releases.old))
    assert machine.os.says("older", caught.value.what)
    run(machine, publish(releases.old), releases.old, older=True)


def test_the_same_version_again_is_a_no_op(
    machine: Machine, publish: Address, update_server: UpdateServer, releases: Releases
) -> None:
    """Nothing is written to any slot when the version is there already."""
    before = machine.os.slots()
    written = [] if machine.origin is not None else machine.os.slots_written()
    machine.os.upgrade(publish(releases.old))
    assert machine.os.slots() == before
    assert machine.os.slots_written() == written
    fetched = [request.path for request in update_server.requests]
    assert fetched, "it did ask what there is"
    payload = [machine.os.update_files[name] for name in ("root", "kernel")]
    assert not [path for path in fetched if any(fnmatch(path, each) for each in payload)]


@pytest.mark.needs("rollback")
def test_rollback_by_command(machine: Machine, publish: Address, releases: Releases) -> None:
    """After a rollback the old version runs, and goes on to after another reboot."""
    slot = machine.os.slot()
    run(machine, publish(releases.new), releases.new)
    machine.os.rollback()
    for _ in range(2):
        machine.reboot()
        assert (machine.os.version(), machine.os.slot()) == (releases.old, slot)
        machine.os.wait_good()


@pytest.mark.needs("rollback")
def test_rollback_by_the_boot_menu(machine: Machine, publish: Address, releases: Releases) -> None:
    """A person at the console chooses the old entry, for this boot alone."""
    slot = machine.os.slot()
    run(machine, publish(releases.new), releases.new)
    machine.os.choose_entry(releases.old)
    assert (machine.os.version(), machine.os.slot()) == (releases.old, slot)
    machine.reboot()
    assert machine.os.version() == releases.new


@pytest.mark.nightly
def test_two_upgrades_in_a_row_then_a_downgrade(
    machine: Machine, publish: Address, releases: Releases
) -> None:
    """Each goes to the slot that does not run."""
    newest = releases.newest
    first, second = machine.os.slot(), machine.os.other_slot()
    run(machine, publish(releases.new), releases.new)
    assert machine.os.slot() == second
    run(machine, publish(newest), newest)
    assert machine.os.slot() == first
    run(machine, publish(releases.old), releases.old, older=True)
    assert machine.os.slot() == second


@pytest.mark.nightly
def test_an_upgrade_under_load(machine: Machine, publish: Address, releases: Releases) -> None:
    """It takes while every CPU is busy and the state is written to."""
    machine.succeed(
        "for n in 1 2; do (while :; do :; done) > /dev/null 2>&1 & done;"
        " (while :; do dd if=/dev/zero of=$HOME/load bs=1M count=20 conv=fsync; done)"
        " > /dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("test -s $HOME/load")
    run(machine, publish(releases.new), releases.new)
