"""An installed system: it boots alone, remembers, and ends in order."""

from __future__ import annotations

import pytest

from fixtures.machines import Boot
from harness.machine import Machine
from suites.conftest import Installed

pytestmark = pytest.mark.needs("install-unattended", "ssh")

IDENTITY = "cat /etc/machine-id /etc/hostname; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


@pytest.fixture(scope="module")
def machine(installed: Installed, shared_boot: Boot) -> Machine:
    """The installed system, booted once for this module."""
    return installed.start(shared_boot).wait_ready()


@pytest.mark.needs("verity")
def test_it_boots_into_slot_a_read_only_and_verified(machine: Machine) -> None:
    """The first slot runs; its root cannot be written and is checked."""
    assert machine.os.slot() == "a"
    assert machine.os.verified()
    machine.fail(machine.os.as_root("touch /usr/here"))


@pytest.mark.needs("persistence")
def test_var_and_identity_survive_a_reboot(machine: Machine) -> None:
    """After a reboot /var has what was written, and it is the same system in another boot."""
    machine.succeed(machine.os.as_root("echo kept > /var/kept"))
    before, boot_id = machine.succeed(IDENTITY), machine.boot_id
    machine.reboot()
    assert machine.boot_id != boot_id
    assert machine.succeed("cat /var/kept") == "kept\n"
    assert machine.succeed(IDENTITY) == before


@pytest.mark.needs("acpi-shutdown")
def test_the_power_button_ends_it_in_order(machine: Machine) -> None:
    """A press of the power button shuts the system down; QEMU's monitor says that the guest did."""
    machine.shutdown()
    assert not machine.running
    log = machine.console.log.read_text(errors="replace")
    assert "Power down" in log or "Powering off" in log
