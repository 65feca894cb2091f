"""An installed system: it boots alone, remembers, and ends in order."""

from __future__ import annotations

import pytest

from harness.machine import Machine

pytestmark = pytest.mark.needs("install", "ssh")


@pytest.mark.needs("verity")
def test_it_boots_into_the_first_slot_read_only_and_verified(installed: Machine) -> None:
    """The first slot runs; its root cannot be written and is checked."""
    assert installed.os.slot() == installed.os.slot_names[0]
    assert installed.os.verified()
    installed.fail(installed.os.as_root("touch /usr/here"))


@pytest.mark.needs("persistence")
def test_state_and_identity_survive_a_reboot(installed: Machine) -> None:
    """After a reboot what was written is there, and it is the same system in another boot."""
    kept = f"{installed.os.state_folder}/kept"
    installed.succeed(installed.os.as_root(f"echo kept > {kept}"))
    before, boot_id = installed.os.identity(), installed.boot_id
    installed.reboot()
    assert installed.boot_id != boot_id
    assert installed.succeed(f"cat {kept}") == "kept\n"
    assert installed.os.identity() == before


@pytest.mark.needs("acpi-shutdown")
def test_the_power_button_ends_it_in_order(installed: Machine) -> None:
    """A press of the power button shuts the system down; QEMU's monitor says that the guest did."""
    installed.shutdown()
    assert not installed.running
    log = installed.console.log.read_text(errors="replace")
    assert "Power down" in log or "Powering off" in log
