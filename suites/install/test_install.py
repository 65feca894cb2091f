"""Installing: by hand and unattended, onto the right disk, or not at all."""

from __future__ import annotations

import pytest

from fixtures.machines import Boot
from harness import profiles
from harness.catalog import Selection
from harness.machine import Machine
from harness.profiles import Install
from harness.qemu.disk import digest
from suites.conftest import Installed, installed_by, target_disk

pytestmark = pytest.mark.needs("install")


def check_accepted(boot: Boot, installed: Installed) -> Machine:
    """Boot an installed disk alone and check that it is the system that was asked for."""
    machine = installed.start(boot)
    machine.os.login()
    answers = installed.answers
    assert machine.console.run("id -un").stdout.strip() == answers.user
    assert machine.ssh.run("hostname").check().stdout.strip() == answers.hostname
    assert machine.ssh.run(machine.os.as_root("id -u")).check().stdout.strip() == "0"
    assert machine.os.slot() == machine.os.slot_names[0]
    assert machine.os.version() == machine.os.selection.version
    return machine


def test_interactively_over_the_serial_console(boot: Boot, live: Machine, answers: Install) -> None:
    """A person answers the installer's questions; the disk then boots alone and knows them."""
    live.os.install(answers)
    live.shutdown()
    check_accepted(boot, installed_by(live, answers))


@pytest.mark.needs("install-unattended", "seed")
def test_unattended_from_a_nocloud_seed(boot: Boot, image: Selection, answers: Install) -> None:
    """A seed holds the answers; nobody touches the console; the machine powers off when done."""
    machine = boot(
        name="live",
        disks=[target_disk(image)],
        seed_files=profiles.of(image.image).seed(answers),
        authorize=False,
    )
    machine.os.wait_installed()
    machine.wait_for_shutdown()
    alone = check_accepted(boot, installed_by(machine, answers))
    if "recovery" in image.image.capabilities:
        alone.os.boot_recovery()
        assert alone.os.slot() == "recovery"


@pytest.mark.needs("install-unattended", "credentials")
def test_unattended_from_smbios_onto_the_named_one_of_two_disks(
    boot: Boot, image: Selection, answers: Install
) -> None:
    """Of two disks the one whose serial was named is installed; the other keeps every byte."""
    disks = [target_disk(image, "bystander", "bystander-1"), target_disk(image)]
    machine = boot(
        name="live",
        disks=disks,
        credentials=profiles.of(image.image).install_credentials(answers),
        authorize=False,
    )
    before = digest(machine.disk("bystander"))
    machine.os.wait_installed()
    assert machine.writes("target") > 0
    assert machine.writes("bystander") == 0
    machine.wait_for_shutdown()
    assert digest(machine.disk("bystander")) == before
    check_accepted(boot, installed_by(machine, answers))
