"""A machine with a malformed seed comes up live, says what is wrong, and touches no disk."""

from __future__ import annotations

import pytest

from fixtures.machines import Boot
from harness import profiles
from harness.catalog import Selection
from harness.errors import InstallRefusedError
from harness.profiles import Install
from harness.qemu.disk import digest
from suites.conftest import target_disk


@pytest.mark.needs("install-unattended", "seed")
def test_a_malformed_seed_at_boot(boot: Boot, image: Selection, answers: Install) -> None:
    """The console names file and line; the live system stays up for a person to look."""
    profile = profiles.of(image.image)
    malformed, reason = profile.malformed_seed(answers, "unknown key")
    seed = {**profile.seed(answers), "user-data": malformed}
    machine = boot(disks=[target_disk(image)], seed_files=seed)
    before = digest(machine.disk("target"))
    with pytest.raises(InstallRefusedError, match=rf"user-data{reason}"):
        machine.os.wait_installed()
    machine.os.login()
    assert machine.console.run("id -un").stdout == f"{image.image.login.user}\n"
    machine.power_cut()
    assert digest(machine.disk("target")) == before
