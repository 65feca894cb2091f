"""An installed system: it boots alone, keeps its state, and shuts down cleanly."""

from __future__ import annotations

from typing import Protocol

import pytest

from harness import Installable, Machine, Verified

pytestmark = pytest.mark.needs("install", "ssh")


class VerifiedInstall(Installable, Verified, Protocol):
    """Installs itself, with a verified root."""


@pytest.mark.tier(
    "gate",
    cost=5,
    catches="an installed root that can be written, or that nothing verifies",
)
@pytest.mark.needs("verity")
def test_it_boots_into_the_first_slot_read_only_and_verified(
    installed: Machine[VerifiedInstall],
) -> None:
    """The first slot runs; its root is read-only and verified."""
    assert installed.os.slot() == installed.os.slot_names[0]
    assert installed.os.verified()
    installed.fail(installed.os.as_root("touch /usr/here"))


@pytest.mark.tier("gate", cost=40, catches="state or identity that lives in memory only")
@pytest.mark.needs("persistence")
def test_state_and_identity_survive_a_reboot(installed: Machine) -> None:
    """After a reboot the written file is there, and the system is the same in another boot."""
    kept = f"{installed.os.state_folder}/kept"
    installed.succeed(installed.os.as_root(f"echo kept > {kept}"))
    before, boot_id = installed.os.identity(), installed.boot_id
    installed.reboot()
    assert installed.boot_id != boot_id
    assert installed.succeed(f"cat {kept}") == "kept\n"
    assert installed.os.identity() == before


@pytest.mark.tier(
    "gate", cost=9, catches="a system that ignores ACPI, so that a host can only kill it"
)
@pytest.mark.needs("acpi-shutdown")
def test_the_power_button_shuts_it_down_cleanly(installed: Machine) -> None:
    """A press of the power button shuts the system down; QEMU's monitor says that the guest did it."""
    installed.shutdown()
    assert not installed.running
    log = installed.console.log.read_text(errors="replace")
    assert "Power down" in log or "Powering off" in log
