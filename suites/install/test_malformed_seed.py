"""A machine with a malformed seed boots live, names the fault, and touches no disk."""

from __future__ import annotations

import pytest

from harness import (
    Install,
    Lab,
    Machine,
    SeedInstallable,
    Selection,
    errors,
    points,
    profile_of,
)


@pytest.mark.tier(
    "gate", cost=35, catches="a machine that is lost, or half installed, by an error in its seed"
)
@pytest.mark.needs("install-unattended", "seed")
def test_a_malformed_seed_at_boot(lab: Lab, image: Selection, answers: Install) -> None:
    """The console names file and line; the live system stays up for a person to look."""
    profile: type[SeedInstallable] = profile_of(image)
    malformed, reason = profile.malformed_seed(answers, "unknown key")
    seed = {**profile.seed(answers), "user-data": malformed}
    machine: Machine[SeedInstallable] = lab.boot(disks=[points.target_disk(image)], seed_files=seed)
    before = machine.disk_digest("target")
    with pytest.raises(errors.InstallRefusedError, match=rf"user-data{reason}"):
        machine.os.wait_installed()
    machine.os.login()
    assert machine.console.run("id -un").stdout == f"{image.login.user}\n"
    machine.power_cut()
    assert machine.disk_digest("target") == before
