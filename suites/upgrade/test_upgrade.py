"""An upgrade takes: the other slot runs, all state is kept, and the way back is open."""

from __future__ import annotations

import pytest

from harness.errors import UpgradeRefusedError
from harness.machine import Machine
from harness.services import Registry, UpdateServer
from suites.conftest import Updates, identity, settle

pytestmark = pytest.mark.needs("upgrade", "persistence", "ssh")


def where(machine: Machine) -> tuple[str, str]:
    """Return the slot and the version that run."""
    return machine.os.slot(), machine.os.version()


def holds(machine: Machine) -> dict[str, tuple[str, str]]:
    """Return version and state of each slot."""
    return {slot.name: (slot.version, slot.state) for slot in machine.os.slots()}


def test_it_takes_and_keeps_all_state(
    upgradable: Machine, updates: Updates, update_server: UpdateServer
) -> None:
    """1 -> 2 over HTTPS: another slot and version, the same /var, host key and machine id."""
    source = updates.over_https(update_server, "2")
    before = identity(upgradable)
    assert where(upgradable) == ("a", "1")
    upgradable.os.upgrade(source)
    assert where(upgradable) == ("a", "1"), "what runs changes with a reboot only"
    assert holds(upgradable) == {"a": ("1", "good"), "b": ("2", "trying")}
    assert upgradable.os.slots()[1].tries_left == 3
    settle(upgradable)
    assert where(upgradable) == ("b", "2")
    assert upgradable.os.verified()
    assert identity(upgradable) == before
    assert holds(upgradable) == {"a": ("1", "good"), "b": ("2", "good")}
    last = upgradable.os.boot_record()[-1]
    assert (last.version, last.slot, last.outcome) == ("2", "b", "good")


def test_the_same_version_again_is_a_no_op(
    upgradable: Machine, updates: Updates, update_server: UpdateServer
) -> None:
    """What runs already is not fetched, and no slot is written."""
    source = updates.over_https(update_server, "1")
    before = holds(upgradable)
    upgradable.os.upgrade(source)
    assert holds(upgradable) == before
    fetched = [request.path for request in update_server.requests]
    assert fetched, "it did ask what there is"
    assert not [path for path in fetched if path.endswith((".raw", ".efi"))]


@pytest.mark.needs("rollback")
def test_from_the_registry_and_back(
    upgradable: Machine, updates: Updates, registry: Registry
) -> None:
    """1 -> 2 from an OCI registry; back by command; to 2 again by the boot menu."""
    upgradable.os.upgrade(updates.over_oci(registry, "2"))
    settle(upgradable)
    assert where(upgradable) == ("b", "2")
    upgradable.os.rollback()
    settle(upgradable)
    assert where(upgradable) == ("a", "1")
    assert "chosen" in [record.outcome for record in upgradable.os.boot_record()]
    upgradable.os.choose_entry("2")
    assert where(upgradable) == ("b", "2")


def test_two_in_a_row_then_down(
    upgradable: Machine, updates: Updates, update_server: UpdateServer
) -> None:
    """1 -> 2 -> 3 -> 2: each goes to the slot that does not run; down only if it is allowed."""
    upgradable.os.upgrade(updates.over_https(update_server, "2"))
    settle(upgradable)
    upgradable.os.upgrade(updates.over_https(update_server, "3"))
    settle(upgradable)
    assert where(upgradable) == ("a", "3")
    assert holds(upgradable) == {"a": ("3", "good"), "b": ("2", "good")}
    older = updates.over_https(update_server, "1")
    with pytest.raises(UpgradeRefusedError, match="older"):
        upgradable.os.upgrade(older)
    upgradable.os.upgrade(older, allow_downgrade=True)
    settle(upgradable)
    assert where(upgradable) == ("b", "1")
    assert upgradable.succeed("cat /var/kept") == "kept\n"


def test_under_load(upgradable: Machine, updates: Updates, update_server: UpdateServer) -> None:
    """An upgrade takes while CPUs and /var are busy; what the load wrote and synced is there."""
    busy = "systemd-run -q --unit=busy sh -c 'while :; do :; done'"
    writing = (
        "systemd-run -q --unit=writing sh -c 'i=0; while :; do i=$((i+1)); head -c 100000 /dev/urandom"
        " > /var/load.$((i%20)); sync; echo $i > /var/load.done; done'"
    )
    for load in (busy, writing):
        upgradable.succeed(upgradable.os.as_root(load))
    upgradable.os.upgrade(updates.over_https(update_server, "2"))
    assert int(upgradable.succeed("cat /var/load.done")) > 0, "the load did run"
    settle(upgradable)
    assert where(upgradable) == ("b", "2")
    assert int(upgradable.succeed("cat /var/load.done")) > 0
