"""Power goes while the system upgrades: it comes back as the old version or as the new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.cuts import Cut, Record
from fixtures.machines import Boot
from fixtures.points import alone, system_disk
from fixtures.releases import Releases
from fixtures.services import Services
from fixtures.states import ForkOf
from harness.crash import Recording
from harness.services import UpdateServer
from suites.conftest import check_booted_once, check_verified, settled

pytestmark = [pytest.mark.needs("upgrade"), pytest.mark.cuts(4)]


@pytest.fixture(scope="module")
def recording(
    record: Record,
    services: Services,
    update_set: Callable[[str], list[Path]],
    releases: Releases,
) -> Recording:
    """All that is written to the disk during an upgrade."""

    def upgrade(boot: Boot, fork_of: ForkOf, folder: Path) -> Recording:
        server = services.get(UpdateServer)
        for path in update_set(releases.new):
            server.publish(path, f"{releases.new}/{path.name}")
        machine = fork_of(settled, services=[server])
        machine.os.trust(services.ca.pem)
        kept = f"{machine.os.state_folder}/kept"
        machine.succeed(machine.os.as_root(f"echo kept > {kept} && sync"))
        with machine.recording(system_disk(boot.image), folder) as recording:
            recording.mark("begin")
            machine.os.upgrade(f"{server.url}/{releases.new}/")
            recording.mark("done")
            machine.power_cut()
        return recording

    return record("upgrade", upgrade)


def test_power_goes_during_an_upgrade(
    cut: Cut, boot: Boot, check_state: Callable[[Path], None], releases: Releases
) -> None:
    """One version boots at once, as a whole; an entry never leads to a slot that is not.

    A version that needs its tries to be given up fails here, although the machine would come back.
    """
    old, new = releases.old, releases.new
    check_state(cut.path)
    machine = alone(boot, cut.disk(), "cut", network=False)
    machine.os.login()
    version = machine.os.version()
    assert version == new if cut.after("done") else version in (old, new)
    check_verified(machine)
    assert machine.succeed(f"cat {machine.os.state_folder}/kept") == "kept\n"
    machine.os.wait_good()
    check_booted_once(machine)
    states = {each.name: each for each in machine.os.slots()}
    running = states.pop(machine.os.slot())
    assert (running.version, running.state) == (version, "good")
    for other in states.values():
        # The newer one would have been booted, had it an entry.
        assert other.state == "good" if version == new else other.state in ("empty", "bad")
