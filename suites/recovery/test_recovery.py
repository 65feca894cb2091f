"""Recovery: by command, from the menu, by itself; what it repairs, and what a reset leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.states import ForkOf
from harness.errors import GuestError, RecoveryRefusedError
from harness.machine import Machine
from harness.services import Ca, UpdateServer
from suites.conftest import settled

IDENTITY = "cat /etc/machine-id"


@pytest.fixture
def machine(fork_of: ForkOf) -> Machine:
    """An installed system."""
    return fork_of(settled)


@pytest.mark.needs("recovery")
def test_recovery_by_command_repairs_a_slot(machine: Machine) -> None:
    """A slot whose first MiB was overwritten is written anew; the state is left alone."""
    machine.succeed(machine.os.as_root("echo kept > /var/kept"))
    identity = machine.succeed(IDENTITY)
    machine.os.damage("a")
    machine.os.boot_recovery()
    assert machine.os.slot() == "recovery"
    with pytest.raises(RecoveryRefusedError):
        machine.os.repair("nowhere")
    machine.os.repair("a")
    machine.reboot()
    assert (machine.os.slot(), machine.os.version()) == ("a", "1")
    machine.os.wait_good()
    assert machine.os.verified()
    assert machine.succeed("cat /var/kept") == "kept\n"
    assert machine.succeed(IDENTITY) == identity


@pytest.mark.nightly
@pytest.mark.needs("recovery")
def test_recovery_from_the_boot_menu(machine: Machine) -> None:
    """A person at the console chooses it."""
    machine.os.choose_entry("recovery")
    assert machine.os.slot() == "recovery"


@pytest.mark.nightly
@pytest.mark.needs("recovery", "upgrade")
def test_recovery_by_itself_when_both_slots_are_bad(
    fork_of: ForkOf, update_server: UpdateServer, ca: Ca, publish: Callable[[str], str]
) -> None:
    """The first MiB of both slots is overwritten; recovery comes up, repairs one, and it runs."""
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    machine.os.upgrade(publish("2"))
    machine.reboot()
    machine.os.wait_good()
    for slot in ("a", "b"):
        machine.os.damage(slot)
    with machine.expecting(GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(400)
    assert [each.state for each in machine.os.slots()] == ["bad", "bad"]
    machine.os.repair("a")
    machine.reboot()
    assert (machine.os.version(), machine.os.slot()) == ("1", "a")
    machine.os.wait_good()


@pytest.mark.nightly
@pytest.mark.needs("recovery", "reset")
def test_recovery_by_itself_when_the_state_is_gone(machine: Machine) -> None:
    """The state does not mount, in whichever slot; recovery comes up, and a reset makes it anew."""
    hostname, identity = machine.succeed("cat /etc/hostname"), machine.succeed(IDENTITY)
    machine.os.damage_state()
    with machine.expecting(GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(400)
    machine.os.reset()
    assert machine.os.slot() == "a"
    assert machine.succeed("cat /etc/hostname") == hostname
    assert machine.succeed(IDENTITY) != identity
    machine.os.wait_good()


@pytest.mark.needs("reset")
@pytest.mark.parametrize(
    "where", [pytest.param("the system", marks=pytest.mark.nightly), "recovery"]
)
def test_a_reset(machine: Machine, where: str) -> None:
    """/var is as after the installation, the machine is another one, and knows its user still."""
    machine.succeed(machine.os.as_root("echo gone > /var/gone"))
    hostname, identity = machine.succeed("cat /etc/hostname"), machine.succeed(IDENTITY)
    if where == "recovery":
        machine.os.boot_recovery()
    machine.os.reset()
    machine.fail("test -e /var/gone")
    assert machine.succeed("cat /etc/hostname") == hostname
    assert machine.succeed(IDENTITY) != identity
    assert machine.console.run("id -un").stdout == f"{machine.os.account.user}\n"
