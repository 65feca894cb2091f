"""Installing: by hand and unattended, onto the right disk, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from harness import (
    CredentialInstallable,
    Disk,
    Install,
    Installable,
    Lab,
    Machine,
    Nic,
    Pairable,
    Recoverable,
    SeedInstallable,
    Selection,
    errors,
    points,
    profile_of,
)

pytestmark = pytest.mark.needs("install")


def check_accepted(lab: Lab, disk: Disk, answers: Install) -> Machine[Any]:
    """Boot an installed disk alone and check that the system matches the answers."""
    machine = points.boot_installed(lab, disk)
    machine.os.login()
    assert machine.console.run("id -un").stdout.strip() == answers.user
    assert machine.ssh.run("hostname").check().stdout.strip() == answers.hostname
    assert machine.ssh.run(machine.os.as_root("id -u")).check().stdout.strip() == "0"
    assert machine.os.slot() == machine.os.slot_names[0]
    assert machine.os.version() == machine.os.selection.version
    return machine


@pytest.mark.tier(
    "smoke",
    cost=60,
    catches="an installer that a person cannot use, or a disk that does not boot alone",
    other_arches="gate",
)
def test_interactively_over_the_serial_console(
    lab: Lab, live: Machine[Installable], answers: Install
) -> None:
    """A person answers the installer's questions; the disk then boots alone as they said."""
    live.os.install(answers)
    live.shutdown()
    check_accepted(lab, points.installed_disk(live), answers)


def install_from_seed(lab: Lab, image: Selection, answers: Install) -> Machine[Any]:
    """Install from a NoCloud seed, boot the disk alone, and check it."""
    profile: type[SeedInstallable] = profile_of(image)
    machine: Machine[SeedInstallable] = lab.boot(
        name="live",
        disks=[points.target_disk(image)],
        seed_files=profile.seed(answers),
        authorize=False,
    )
    machine.os.wait_installed()
    machine.wait_for_shutdown()
    return check_accepted(lab, points.installed_disk(machine), answers)


@pytest.mark.tier(
    "gate", cost=85, catches="a seed that is not read, or an installation that never powers off"
)
@pytest.mark.needs("install-unattended", "seed")
def test_unattended_from_a_nocloud_seed(lab: Lab, image: Selection, answers: Install) -> None:
    """A seed holds the answers; nobody touches the console; the machine powers off when done."""
    install_from_seed(lab, image, answers)


@pytest.mark.tier(
    "nightly", cost=125, catches="recovery that an unattended installation leaves out"
)
@pytest.mark.needs("install-unattended", "seed", "recovery")
def test_recovery_after_an_unattended_installation(
    lab: Lab, image: Selection, answers: Install
) -> None:
    """The entry is there as after an installation by hand."""
    machine: Machine[Recoverable] = install_from_seed(lab, image, answers)
    machine.os.boot_recovery()
    assert machine.os.slot() == "recovery"


@pytest.mark.tier("gate", cost=90, catches="an unattended installation onto the wrong disk")
@pytest.mark.needs("install-unattended", "credentials")
def test_unattended_from_smbios_onto_the_named_one_of_two_disks(
    lab: Lab, image: Selection, answers: Install
) -> None:
    """Of two disks the one with the named serial is installed; the other keeps every byte."""
    profile: type[CredentialInstallable] = profile_of(image)
    machine: Machine[CredentialInstallable] = lab.boot(
        name="live",
        disks=[
            points.target_disk(image, "bystander", "bystander-1"),
            points.target_disk(image),
        ],
        credentials=profile.install_credentials(answers),
        authorize=False,
    )
    before = machine.disk_digest("bystander")
    machine.os.wait_installed()
    assert machine.writes("target") > 0
    assert machine.writes("bystander") == 0
    machine.wait_for_shutdown()
    assert machine.disk_digest("bystander") == before
    check_accepted(lab, points.installed_disk(machine), answers)


@pytest.mark.tier(
    "gate",
    cost=85,
    catches="a screen whose code cannot be read, or an installation without the code",
)
@pytest.mark.needs("install-unattended", "pairing")
def test_paired_by_the_code_on_its_screen(lab: Lab, image: Selection, answers: Install) -> None:
    """The code and the answers, sent to the machine, install it; a guess before that writes nothing."""
    profile: type[Pairable] = profile_of(image)
    machine: Machine[Pairable] = lab.boot(
        name="live",
        disks=[points.target_disk(image)],
        nics=[Nic(forward=(profile.pairing_port,))],
        display=True,
        authorize=False,
    )
    code = machine.os.pairing_code()
    guess = code[:-1] + ("A" if code[-1] != "A" else "B")
    with pytest.raises(errors.InstallRefusedError) as refusal:
        machine.os.pair(guess, answers)
    assert machine.os.says("code", refusal.value.what)
    assert machine.writes("target") == 0
    machine.os.pair(code, answers)
    machine.wait_for_shutdown()
    check_accepted(lab, points.installed_disk(machine), answers)
