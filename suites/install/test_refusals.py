"""What the installer refuses: with a clear message, and no byte of any disk changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fixtures.machines import Boot
from fixtures.points import TARGET
from fixtures.states import ForkOf
from harness.errors import InstallRefusedError
from harness.machine import Machine
from harness.profiles import Install, Malformed
from harness.spec import MIB, Disk
from harness.state import state
from suites.conftest import target_disk

pytestmark = pytest.mark.needs("install")

MARK = "this disk has something on it"


@state
def beside_disks_in_use(boot: Boot) -> Machine:
    """The live system with a disk that would do and one that is too small, both with data."""
    small = Disk("small", size=512 * MIB, serial="small-1")
    machine = boot(disks=[target_disk(boot.image), small])
    machine.os.login()
    for serial in (TARGET, "small-1"):
        disk = f"/dev/disk/by-id/virtio-{serial}"
        machine.succeed(f"printf '{MARK}' | dd of={disk} conv=notrunc,fsync 2>/dev/null")
    return machine


@pytest.fixture
def live(fork_of: ForkOf) -> Iterator[Machine]:
    """Such a machine; no write reaches either disk during a test: QEMU has counted them."""
    machine = fork_of(beside_disks_in_use)
    machine.succeed("sync")
    before = [machine.writes(name) for name in ("target", "small")]
    yield machine
    machine.succeed("sync")
    assert [machine.writes(name) for name in ("target", "small")] == before
    for name in ("target", "small"):
        assert machine.succeed(f"head -c {len(MARK)} /dev/disk/by-id/virtio-{name}-1") == MARK


def refused(machine: Machine, answers: Install, confirm: bool = True) -> str:
    """Let the installer refuse, and return its reason."""
    with pytest.raises(InstallRefusedError) as caught:
        machine.os.install(answers, confirm=confirm)
    return caught.value.what


def test_a_disk_that_is_too_small(live: Machine, answers: Install) -> None:
    """The message says how much is needed and how much is there."""
    assert live.os.says("too small", refused(live, replace(answers, disk="small-1")))


def test_a_disk_that_is_absent(live: Machine, answers: Install) -> None:
    """The message names the disk that was asked for and those that are there."""
    reason = refused(live, replace(answers, disk="nowhere-1"))
    assert live.os.says("no such disk", reason)
    assert "nowhere-1" in reason
    assert TARGET in reason


def test_no_confirmation(live: Machine, answers: Install) -> None:
    """Anything but the confirmation, typed out, is a no."""
    assert live.os.says("not confirmed", refused(live, answers, confirm=False))


def test_the_medium_itself(live: Machine, answers: Install) -> None:
    """The disk that the live system runs from is no target."""
    assert live.os.says("the medium", refused(live, replace(answers, disk="live")))


@pytest.mark.needs("install-unattended", "seed")
@pytest.mark.parametrize("how", ["unknown key", "no header", "cut short"])
def test_malformed_settings(live: Machine, answers: Install, how: Malformed) -> None:
    """The message names the line that is wrong."""
    malformed, reason = live.os.malformed_seed(answers, how)
    with pytest.raises(InstallRefusedError, match=reason):
        live.os.install_from(malformed)
