"""Recovery: by command, from the menu, by itself; what it repairs, and what a reset leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.releases import Releases
from fixtures.states import ForkOf
from harness.catalog import Selection
from harness.errors import GuestError, RecoveryRefusedError
from harness.machine import Machine
from harness.profiles import Identity
from harness.services import Ca, UpdateServer
from suites.conftest import check_verified, settled


@pytest.fixture
def machine(fork_of: ForkOf) -> Machine:
    """An installed system."""
    return fork_of(settled)


def mark(machine: Machine, text: str) -> str:
    """Leave a file in the state and return its path."""
    path = f"{machine.os.state_folder}/{text}"
    machine.succeed(machine.os.as_root(f"echo {text} > {path}"))
    return path


@pytest.mark.needs("recovery")
def test_recovery_by_command_repairs_a_slot(machine: Machine, image: Selection) -> None:
    """A slot whose first MiB was overwritten is written anew; the state is left alone."""
    kept = mark(machine, "kept")
    identity, slot = machine.os.identity(), machine.os.slot()
    machine.os.damage(slot)
    machine.os.boot_recovery()
    assert machine.os.slot() == "recovery"
    with pytest.raises(RecoveryRefusedError):
        machine.os.repair("nowhere")
    machine.os.repair(slot)
    machine.reboot()
    assert (machine.os.slot(), machine.os.version()) == (slot, image.version)
    machine.os.wait_good()
    check_verified(machine)
    assert machine.succeed(f"cat {kept}") == "kept\n"
    assert machine.os.identity() == identity


@pytest.mark.nightly
@pytest.mark.needs("recovery")
def test_recovery_from_the_boot_menu(machine: Machine) -> None:
    """A person at the console chooses it."""
    machine.os.choose_entry("recovery")
    assert machine.os.slot() == "recovery"


@pytest.mark.nightly
@pytest.mark.needs("recovery", "upgrade")
def test_recovery_by_itself_when_both_slots_are_bad(
    fork_of: ForkOf,
    update_server: UpdateServer,
    ca: Ca,
    publish: Callable[[str], str],
    releases: Releases,
) -> None:
    """The first MiB of both slots is overwritten; recovery comes up, repairs one, and it runs."""
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    machine.os.upgrade(publish(releases.new))
    machine.reboot()
    machine.os.wait_good()
    for slot in machine.os.slot_names:
        machine.os.damage(slot)
    with machine.expecting(GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(400)
    names = machine.os.slot_names
    assert [(each.name, each.state) for each in machine.os.slots()] == [(n, "bad") for n in names]
    first = names[0]
    machine.os.repair(first)
    machine.reboot()
    assert (machine.os.version(), machine.os.slot()) == (releases.old, first)
    machine.os.wait_good()


@pytest.mark.nightly
@pytest.mark.needs("recovery", "reset")
def test_recovery_by_itself_when_the_state_is_gone(machine: Machine) -> None:
    """The state does not mount, in whichever slot; recovery comes up, and a reset makes it anew."""
    before, slot = machine.os.identity(), machine.os.slot()
    machine.os.damage_state()
    with machine.expecting(GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(400)
    machine.os.reset()
    assert machine.os.slot() == slot
    check_another(machine, before)
    machine.os.wait_good()


@pytest.mark.needs("reset")
@pytest.mark.parametrize(
    "where",
    [
        pytest.param("the system", marks=pytest.mark.nightly),
        pytest.param("recovery", marks=pytest.mark.needs("recovery")),
    ],
)
def test_a_reset(machine: Machine, where: str) -> None:
    """/var is as after the installation, the machine is another one, and knows its user still."""
    gone = mark(machine, "gone")
    before = machine.os.identity()
    if where == "recovery":
        machine.os.boot_recovery()
    machine.os.reset()
    machine.fail(f"test -e {gone}")
    check_another(machine, before)
    assert machine.console.run("id -un").stdout == f"{machine.os.account.user}\n"


def check_another(machine: Machine, before: Identity) -> None:
    """Check that a machine is another one than before, in all but its name."""
    now = machine.os.identity()
    assert now.hostname == before.hostname
    assert now.machine_id != before.machine_id
    assert not now.host_key or now.host_key != before.host_key
