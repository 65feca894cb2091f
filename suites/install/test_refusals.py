"""Installations that are refused: with a clear message, and no byte of any disk changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import pytest

from harness import (
    MIB,
    Disk,
    Install,
    Installable,
    Lab,
    Machine,
    Malformed,
    SeedInstallable,
    errors,
    points,
    state,
)

pytestmark = pytest.mark.needs("install")

MARK = "this disk is in use"


class AnyInstall(Installable, SeedInstallable, Protocol):
    """Installs by hand and from a seed."""


@state
def beside_disks_in_use(lab: Lab) -> Machine[Any]:
    """The live system with a disk that is large enough and one that is too small, both with data."""
    small = Disk("small", size=512 * MIB, serial="small-1")
    machine = lab.boot(disks=[points.target_disk(lab.image), small])
    machine.os.login()
    for serial in (points.TARGET, "small-1"):
        disk = f"/dev/disk/by-id/virtio-{serial}"
        machine.succeed(f"printf '{MARK}' | dd of={disk} conv=notrunc,fsync 2>/dev/null")
    return machine


@pytest.fixture
def live(lab: Lab) -> Iterator[Machine[AnyInstall]]:
    """Yield such a machine; no write reaches either disk during a test: QEMU has counted them."""
    machine: Machine[AnyInstall] = lab.fork(beside_disks_in_use)
    machine.succeed("sync")
    before = [machine.writes(name) for name in ("target", "small")]
    yield machine
    machine.succeed("sync")
    assert [machine.writes(name) for name in ("target", "small")] == before
    for name in ("target", "small"):
        assert machine.succeed(f"head -c {len(MARK)} /dev/disk/by-id/virtio-{name}-1") == MARK


def refused(machine: Machine[AnyInstall], answers: Install, confirm: bool = True) -> str:
    """Expect the installer to refuse, and return its reason."""
    with pytest.raises(errors.InstallRefusedError) as caught:
        machine.os.install(answers, confirm=confirm)
    return caught.value.what


@pytest.mark.tier(
    "gate",
    cost=6,
    catches="an installation that fails half-way for lack of room",
    uses=("beside_disks_in_use",),
)
def test_a_disk_that_is_too_small(live: Machine[AnyInstall], answers: Install) -> None:
    """The message gives the size that is needed and the size of the disk."""
    assert live.os.says("too small", refused(live, replace(answers, disk="small-1")))


@pytest.mark.tier(
    "gate",
    cost=5,
    catches="another disk taken in the place of the absent one",
    uses=("beside_disks_in_use",),
)
def test_a_disk_that_is_absent(live: Machine[AnyInstall], answers: Install) -> None:
    """The message names the disk that was asked for and those that are there."""
    reason = refused(live, replace(answers, disk="nowhere-1"))
    assert live.os.says("no such disk", reason)
    assert "nowhere-1" in reason
    assert points.TARGET in reason


@pytest.mark.tier(
    "gate",
    cost=6,
    catches="data lost to a person who did not mean it",
    uses=("beside_disks_in_use",),
)
def test_no_confirmation(live: Machine[AnyInstall], answers: Install) -> None:
    """Anything but the confirmation, typed out, means no."""
    assert live.os.says("not confirmed", refused(live, answers, confirm=False))


@pytest.mark.tier(
    "gate",
    cost=5,
    catches="an installer that overwrites the medium it runs from",
    uses=("beside_disks_in_use",),
)
def test_the_medium_itself(live: Machine[AnyInstall], answers: Install) -> None:
    """The disk that the live system runs from cannot be installed onto."""
    assert live.os.says("the medium", refused(live, replace(answers, disk="live")))


@pytest.mark.tier(
    "gate",
    cost=5,
    catches="an error in the settings that is guessed at, or not located",
    uses=("beside_disks_in_use",),
)
@pytest.mark.needs("install-unattended", "seed")
@pytest.mark.parametrize("how", ["unknown key", "no header", "cut short"])
def test_malformed_settings(live: Machine[AnyInstall], answers: Install, how: Malformed) -> None:
    """The message names the line that is wrong."""
    malformed, reason = live.os.malformed_seed(answers, how)
    with pytest.raises(errors.InstallRefusedError, match=reason):
        live.os.install_from(malformed)
