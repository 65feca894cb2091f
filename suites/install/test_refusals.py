"""What the installer refuses: with a clear message, and no byte of any disk changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.machines import Boot
from harness.catalog import Selection
from harness.errors import InstallRefusedError
from harness.machine import Machine
from harness.profiles.base import Install
from harness.spec import MIB, Disk
from suites.conftest import TARGET, target_disk

pytestmark = pytest.mark.needs("install")

MARK = "this disk has something on it"


@pytest.fixture(scope="module")
def live(shared_boot: Boot, image: Selection) -> Machine:
    """The live system with a disk that would do and one that is too small, both with data."""
    small = Disk("small", size=512 * MIB, serial="small-1")
    machine = shared_boot(disks=[target_disk(image), small])
    machine.os.login()
    for serial in (TARGET, "small-1"):
        disk = f"/dev/disk/by-id/virtio-{serial}"
        machine.succeed(f"printf '{MARK}' | dd of={disk} conv=notrunc,fsync 2>/dev/null")
    return machine


@pytest.fixture(autouse=True)
def disks_stay_as_they_are(live: Machine) -> object:
    """No write reaches either disk during a test: QEMU has counted them."""
    live.succeed("sync")
    before = [live.writes(name) for name in ("target", "small")]
    assert all(before), "what the disks were marked with has been counted"
    yield
    live.succeed("sync")
    assert [live.writes(name) for name in ("target", "small")] == before


def refused(machine: Machine, answers: Install, confirm: bool = True) -> str:
    """Let the installer refuse, and return its reason."""
    with pytest.raises(InstallRefusedError) as caught:
        machine.os.install(answers, confirm=confirm)
    return caught.value.what


def test_a_disk_that_is_too_small(live: Machine, answers: Install) -> None:
    """The message says how much is needed and how much is there."""
    reason = refused(live, replace(answers, disk="small-1"))
    assert "too small" in reason
    assert "2.0 GiB needed, 0.5 GiB found" in reason


def test_a_disk_that_is_absent(live: Machine, answers: Install) -> None:
    """The message names the disk that was asked for and those that are there."""
    reason = refused(live, replace(answers, disk="nowhere-1"))
    assert "nowhere-1" in reason
    assert TARGET in reason


def test_no_confirmation(live: Machine, answers: Install) -> None:
    """Anything but the confirmation, typed out, is a no."""
    assert refused(live, answers, confirm=False) == "not confirmed"


def test_the_medium_itself(live: Machine, answers: Install) -> None:
    """The disk that the live system runs from is no target."""
    assert "is the medium this system runs from" in refused(live, replace(answers, disk="live"))


@pytest.mark.needs("install-unattended")
@pytest.mark.parametrize(
    ("settings", "line", "says"),
    [
        ("#cloud-config\nskiff:\n  install:\n    disc: target-1\n", 4, "disc"),
        ("skiff:\n  install:\n    disk: target-1\n", 1, "#cloud-config"),
        ("#cloud-config\nskiff:\n  install:\n    disk: target-1\n", 4, "hostname"),
    ],
    ids=["unknown key", "no header", "cut short"],
)
def test_malformed_settings(live: Machine, settings: str, line: int, says: str) -> None:
    """The message names the line that is wrong."""
    live.ssh.put(settings, "/run/settings.yaml")
    result = live.execute("skiff-install --settings /run/settings.yaml")
    assert result.status == 2
    assert f"refused: settings.yaml:{line}: " in result.output
    assert says in result.output
