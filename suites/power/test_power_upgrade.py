"""Power goes while the system upgrades: it comes back as the old version or as the new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.cuts import Cut, Record
from fixtures.machines import Boot
from fixtures.points import USER
from fixtures.services import Services
from fixtures.states import ForkOf
from harness.crash import Recording
from harness.services import UpdateServer
from suites.conftest import settled

pytestmark = [pytest.mark.needs("install", "upgrade"), pytest.mark.cuts(3)]

OLD, NEW = "1", "2"


@pytest.fixture(scope="module")
def recording(
    record: Record, services: Services, update_set: Callable[[str], list[Path]]
) -> Recording:
    """All that is written to the disk during an upgrade."""

    def upgrade(boot: Boot, fork_of: ForkOf, folder: Path) -> Recording:
        del boot
        server = services.get(UpdateServer)
        for path in update_set(NEW):
            server.publish(path, f"{NEW}/{path.name}")
        machine = fork_of(settled, services=[server])
        machine.os.trust(services.ca.pem)
        machine.succeed(machine.os.as_root("echo kept > /var/kept && sync"))
        with machine.recording("target", folder) as recording:
            recording.mark("begin")
            machine.os.upgrade(f"{server.url}/{NEW}/")
            recording.mark("done")
            machine.power_cut()
        return recording

    return record("upgrade", upgrade)


def test_power_goes_during_an_upgrade(
    cut: Cut, boot: Boot, check_state: Callable[[Path], None]
) -> None:
    """One version boots at once, as a whole; an entry never leads to a slot that is not.

    A version that needs its tries to be given up fails here, although the machine would come back.
    """
    check_state(cut.path)
    machine = boot(
        name="cut", medium=False, disks=[cut.disk()], nics=(), authorize=False, account=USER
    )
    machine.os.login()
    version = machine.os.version()
    assert version == NEW if cut.after("done") else version in (OLD, NEW)
    assert machine.os.verified()
    assert machine.succeed("cat /var/kept") == "kept\n"
    machine.os.wait_good()
    states = {each.name: each for each in machine.os.slots()}
    running = states.pop(machine.os.slot())
    assert (running.version, running.state) == (version, "good")
    for other in states.values():
        # The newer one would have been booted, had it an entry.
        assert other.state == "good" if version == NEW else other.state in ("empty", "bad")
