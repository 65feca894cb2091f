"""A version that is broken falls back by itself: its tries are used up, and the old one runs."""

from __future__ import annotations

import pytest

from harness.machine import Machine
from harness.services import UpdateServer
from suites.conftest import Updates, identity

pytestmark = pytest.mark.needs("upgrade", "rollback", "persistence", "ssh")


@pytest.mark.parametrize("broken", ["panic", "verity", "unhealthy", "stuck"])
def test_a_broken_version_is_given_up(
    broken: str, upgradable: Machine, updates: Updates, update_server: UpdateServer
) -> None:
    """It is tried three times; then the old slot runs again, and the boot record says so."""
    version = updates.named(broken)
    before = identity(upgradable)
    upgradable.os.upgrade(updates.over_https(update_server, version))
    assert upgradable.os.slots()[1].state == "trying"
    upgradable.os.fall_back()
    assert (upgradable.os.slot(), upgradable.os.version()) == ("a", "1")
    upgradable.os.wait_good()
    bad = upgradable.os.slots()[1]
    assert (bad.version, bad.state, bad.tries_left) == (version, "bad", 0)
    assert (version, "failed") in [
        (record.version, record.outcome) for record in upgradable.os.boot_record()
    ]
    assert identity(upgradable) == before
