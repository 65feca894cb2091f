"""Recovery: reached by choice, by command and by itself; it repairs a slot, and resets."""

from __future__ import annotations

import pytest

from fixtures.points import USER
from fixtures.states import ForkOf
from harness.errors import GuestError, RecoveryRefusedError
from harness.machine import Machine
from suites.conftest import identity, settled

pytestmark = pytest.mark.needs("recovery", "persistence", "ssh")


@pytest.fixture
def machine(fork_of: ForkOf) -> Machine:
    """An installed system that was found good."""
    return fork_of(settled)


def spoil(machine: Machine, slot: str) -> None:
    """Overwrite the first MiB of a slot's root."""
    root = machine.os.slot_partitions(slot)[0]
    machine.succeed(machine.os.as_root(f"dd if=/dev/zero of={root} bs=1M count=1 conv=fsync 2>&1"))


def test_by_choice_in_the_boot_menu(machine: Machine) -> None:
    """Somebody at the console chooses it; the next boot is the installed system again."""
    machine.os.choose_entry("recovery")
    assert machine.os.slot() == "recovery"
    machine.reboot()
    assert machine.os.slot() == "a"


def test_by_command_it_repairs_a_slot(machine: Machine) -> None:
    """A slot whose first MiB was overwritten is written anew; /var is not touched."""
    before = identity(machine)
    machine.os.boot_recovery()
    assert machine.os.slot() == "recovery"
    spoil(machine, "a")
    with pytest.raises(RecoveryRefusedError):
        machine.os.repair("nowhere")
    machine.os.repair("a")
    machine.reboot()
    machine.os.wait_good()
    assert (machine.os.slot(), machine.os.version()) == ("a", "1")
    assert machine.os.verified()
    assert identity(machine) == before


def test_by_itself_when_no_slot_boots(machine: Machine) -> None:
    """The only slot is damaged while it runs: each boot fails, then recovery comes up and mends it."""
    before = identity(machine)
    spoil(machine, "a")
    with machine.expecting(GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(600)
    assert [slot.state for slot in machine.os.slots()] == ["bad", "empty"]
    machine.os.repair("a")
    machine.reboot()
    machine.os.wait_good()
    assert machine.os.slot() == "a"
    assert identity(machine) == before


@pytest.mark.needs("reset")
def test_reset_wipes_state_and_keeps_what_the_installer_recorded(machine: Machine) -> None:
    """/var is empty, the machine is another one; user and host name are those of the installation."""
    before = machine.succeed("cat /etc/machine-id")
    machine.succeed(machine.os.as_root("cp /bin/true /var/mine; echo changed > /etc/motd"))
    name = machine.succeed("hostname")
    machine.os.boot_recovery()
    machine.os.reset()
    assert machine.os.slot() == "a"
    machine.os.wait_good()
    assert machine.console.run("id -un").stdout.strip() == USER.user
    assert machine.succeed("hostname") == name
    machine.fail("test -e /var/mine")
    machine.fail("test -e /var/kept")
    assert machine.succeed("cat /etc/motd") == ""
    assert machine.succeed("cat /etc/machine-id") != before
