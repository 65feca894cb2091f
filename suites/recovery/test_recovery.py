"""Recovery: by command, from the boot menu, by itself; repair of a slot, and reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest

from harness import (
    Identity,
    Lab,
    Machine,
    Recoverable,
    Releases,
    Resettable,
    Selection,
    UpdateServer,
    Upgradable,
    errors,
    points,
)


class RecoversAndResets(Recoverable, Resettable, Protocol):
    """Has a recovery entry, and can be reset."""


class UpgradesAndRecovers(Recoverable, Upgradable, Protocol):
    """Upgrades, and has a recovery entry."""


@pytest.fixture
def machine(lab: Lab) -> Machine[RecoversAndResets]:
    """Return an installed system."""
    return lab.fork(points.settled)


def mark(machine: Machine[Any], text: str) -> str:
    """Write a file into the state and return its path."""
    path = f"{machine.os.state_folder}/{text}"
    machine.succeed(machine.os.as_root(f"echo {text} > {path}"))
    return path


@pytest.mark.tier(
    "smoke",
    cost=90,
    catches="a recovery entry that does not boot, or a repair that writes nothing",
    uses=("settled",),
    other_arches="gate",
)
@pytest.mark.needs("recovery")
def test_recovery_by_command_repairs_a_slot(
    machine: Machine[RecoversAndResets],
    image: Selection,
    check_verified: Callable[[Machine[Any]], None],
) -> None:
    """A slot whose first MiB was overwritten is written anew; the state stays as it is."""
    kept = mark(machine, "kept")
    identity, slot = machine.os.identity(), machine.os.slot()
    machine.os.damage(slot)
    machine.os.boot_recovery()
    assert machine.os.slot() == "recovery"
    with pytest.raises(errors.RecoveryRefusedError):
        machine.os.repair("nowhere")
    machine.os.repair(slot)
    machine.reboot()
    assert (machine.os.slot(), machine.os.version()) == (slot, image.version)
    machine.os.wait_good()
    check_verified(machine)
    assert machine.succeed(f"cat {kept}") == "kept\n"
    assert machine.os.identity() == identity


@pytest.mark.tier(
    "nightly", cost=40, catches="a recovery entry that a person cannot choose", uses=("settled",)
)
@pytest.mark.needs("recovery")
def test_recovery_from_the_boot_menu(machine: Machine[RecoversAndResets]) -> None:
    """A person at the console chooses the recovery entry."""
    machine.os.choose_entry("recovery")
    assert machine.os.slot() == "recovery"


@pytest.mark.tier(
    "nightly",
    cost=230,
    catches="a machine that is lost when no version boots",
    uses=("settled", "new"),
)
@pytest.mark.needs("recovery", "upgrade")
def test_recovery_by_itself_when_both_slots_are_bad(
    lab: Lab, update_server: UpdateServer, publish: Callable[[str], str], releases: Releases
) -> None:
    """The first MiB of both slots is overwritten; recovery comes up, repairs one, and it runs."""
    machine: Machine[UpgradesAndRecovers] = lab.fork(points.settled, services=[update_server])
    machine.os.trust(lab.ca.pem)
    machine.os.upgrade(publish(releases.new))
    machine.reboot()
    machine.os.wait_good()
    for slot in machine.os.slot_names:
        machine.os.damage(slot)
    with machine.expecting(errors.GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(400)
    names = machine.os.slot_names
    states = [(slot.name, slot.state) for slot in machine.os.slots()]
    assert states == [(name, "bad") for name in names]
    first = names[0]
    machine.os.repair(first)
    machine.reboot()
    assert (machine.os.version(), machine.os.slot()) == (releases.old, first)
    machine.os.wait_good()


@pytest.mark.tier(
    "nightly",
    cost=150,
    catches="a machine that is lost when its state does not mount",
    uses=("settled",),
)
@pytest.mark.needs("recovery", "reset")
def test_recovery_by_itself_when_the_state_is_gone(machine: Machine[RecoversAndResets]) -> None:
    """The state does not mount, in either slot; recovery comes up, and a reset recreates the state."""
    before, slot = machine.os.identity(), machine.os.slot()
    machine.os.damage_state()
    with machine.expecting(errors.GuestError):
        machine.qmp.execute("system_reset")
        machine.console.skip()
        machine.os.wait_recovery(400)
    machine.os.reset()
    assert machine.os.slot() == slot
    check_new_identity(machine, before)
    machine.os.wait_good()


@pytest.mark.tier(
    "gate",
    cost=75,
    catches="a reset that keeps data or identity of the former owner",
    uses=("settled",),
)
@pytest.mark.needs("reset")
@pytest.mark.parametrize(
    "where",
    [
        pytest.param(
            "the system",
            marks=pytest.mark.tier(
                "nightly",
                cost=55,
                catches="a reset that works in recovery alone",
                uses=("settled",),
            ),
        ),
        pytest.param("recovery", marks=pytest.mark.needs("recovery")),
    ],
)
def test_a_reset(machine: Machine[RecoversAndResets], where: str) -> None:
    """/var is as after the installation, the identity is new, and the user is still known."""
    gone = mark(machine, "gone")
    before = machine.os.identity()
    if where == "recovery":
        machine.os.boot_recovery()
    machine.os.reset()
    machine.fail(f"test -e {gone}")
    check_new_identity(machine, before)
    assert machine.console.run("id -un").stdout == f"{machine.os.account.user}\n"


def check_new_identity(machine: Machine[Any], before: Identity) -> None:
    """Check that a machine has another identity than before, except for its hostname."""
    now = machine.os.identity()
    assert now.hostname == before.hostname
    assert now.machine_id != before.machine_id
    assert not now.host_key or now.host_key != before.host_key
