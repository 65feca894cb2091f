"""Upgrades that take: into the other slot, by HTTPS and from a registry, and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.states import ForkOf
from harness.errors import UpgradeRefusedError
from harness.machine import Machine
from harness.services import Ca, Registry, UpdateServer
from suites.conftest import settled

pytestmark = pytest.mark.needs("upgrade", "ssh")

IDENTITY = "cat /etc/machine-id /etc/hostname; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
Address = Callable[[str], str]


@pytest.fixture
def machine(fork_of: ForkOf, update_server: UpdateServer, registry: Registry, ca: Ca) -> Machine:
    """An installed system of version 1 that reaches both servers and trusts their CA."""
    machine = fork_of(settled, services=[update_server, registry])
    machine.os.trust(ca.pem)
    return machine


def run(machine: Machine, source: str, version: str, slot: str) -> None:
    """Upgrade, restart, and check that it is this version from this slot, and found good."""
    before = machine.os.version()
    machine.os.upgrade(source, allow_downgrade=True)
    assert machine.os.version() == before, "what runs changes with a reboot only"
    made = {each.name: (each.version, each.state, each.tries_left) for each in machine.os.slots()}
    assert made[slot] == (version, "trying", 3)
    machine.reboot()
    assert (machine.os.version(), machine.os.slot()) == (version, slot)
    machine.os.wait_good()
    states = {each.name: (each.version, each.state) for each in machine.os.slots()}
    assert states[slot] == (version, "good")
    last = machine.os.boot_record()[-1]
    assert (last.version, last.slot, last.outcome) == (version, slot, "good")


@pytest.mark.parametrize("way", ["https", "registry"])
def test_an_upgrade_changes_version_and_slot_and_keeps_state(
    machine: Machine, publish: Address, push: Address, way: str
) -> None:
    """Version 2 runs from slot b; what was in /var and who the machine is are as before."""
    machine.succeed(machine.os.as_root("echo kept > /var/kept"))
    identity = machine.succeed(IDENTITY)
    run(machine, publish("2") if way == "https" else push("2"), "2", "b")
    assert machine.os.slots_written() == ["boot", "b"], "the slot that ran is as it was"
    assert machine.succeed("cat /var/kept") == "kept\n"
    assert machine.succeed(IDENTITY) == identity
    machine.succeed("systemctl --wait is-system-running")


def test_the_same_version_again_is_a_no_op(
    machine: Machine, publish: Address, update_server: UpdateServer
) -> None:
    """Nothing is written to any slot when the version is there already."""
    before = machine.os.slots()
    machine.os.upgrade(publish("1"))
    assert machine.os.slots() == before
    fetched = [request.path for request in update_server.requests]
    assert fetched, "it did ask what there is"
    assert not [path for path in fetched if path.endswith((".raw", ".efi"))]


@pytest.mark.needs("rollback")
def test_rollback_by_command(machine: Machine, publish: Address) -> None:
    """After a rollback the old version runs, and goes on to after another reboot."""
    run(machine, publish("2"), "2", "b")
    machine.os.rollback()
    for _ in range(2):
        machine.reboot()
        assert (machine.os.version(), machine.os.slot()) == ("1", "a")
        machine.os.wait_good()


@pytest.mark.needs("rollback")
def test_rollback_by_the_boot_menu(machine: Machine, publish: Address) -> None:
    """A person at the console chooses the old entry, for this boot alone."""
    run(machine, publish("2"), "2", "b")
    machine.os.choose_entry("1")
    assert (machine.os.version(), machine.os.slot()) == ("1", "a")
    machine.reboot()
    assert machine.os.version() == "2"


@pytest.mark.nightly
def test_two_upgrades_in_a_row_then_a_downgrade(machine: Machine, publish: Address) -> None:
    """Each goes to the slot that does not run; an older version has to be allowed."""
    run(machine, publish("2"), "2", "b")
    run(machine, publish("3"), "3", "a")
    with pytest.raises(UpgradeRefusedError, match="older"):
        machine.os.upgrade(publish("1"))
    run(machine, publish("1"), "1", "b")


@pytest.mark.nightly
def test_an_upgrade_under_load(machine: Machine, publish: Address) -> None:
    """It takes while every CPU is busy and /var is written to."""
    machine.succeed(
        "for n in 1 2; do (while :; do :; done) > /dev/null 2>&1 & done;"
        " (while :; do dd if=/dev/zero of=$HOME/load bs=1M count=20 conv=fsync; done)"
        " > /dev/null 2>&1 &"
    )
    run(machine, publish("2"), "2", "b")
