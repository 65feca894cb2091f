"""Power fails during an upgrade: the system comes back as the old version or as the new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Cut,
    Lab,
    Machine,
    Recorder,
    Recording,
    Releases,
    UpdateServer,
    Upgradable,
    points,
)

pytestmark = [pytest.mark.needs("upgrade"), pytest.mark.cuts(2)]


@pytest.fixture(scope="module")
def recording(
    recorder: Recorder,
    update_files: Callable[[str], list[Path]],
    releases: Releases,
) -> Recording:
    """Return everything that is written to the disk during an upgrade."""

    def upgrade(lab: Lab, folder: Path) -> Recording:
        server = lab.service(UpdateServer)
        for path in update_files(releases.new):
            server.publish(path, f"{releases.new}/{path.name}")
        machine: Machine[Upgradable] = lab.fork(points.settled, services=[server])
        machine.os.trust(lab.ca.pem)
        kept = f"{machine.os.state_folder}/kept"
        machine.succeed(machine.os.as_root(f"echo kept > {kept} && sync"))
        with machine.recording(points.system_disk(lab.image), folder) as recording:
            recording.mark("begin")
            machine.os.upgrade(f"{server.url}/{releases.new}/")
            recording.mark("done")
            machine.power_cut()
        return recording

    return recorder("upgrade", upgrade)


@pytest.mark.tier(
    "gate",
    cost=40,
    catches="a boot entry that leads to a slot that is not whole",
    uses=("settled", "new"),
)
def test_power_fails_during_an_upgrade(
    cut: Cut,
    lab: Lab,
    check_state: Callable[[Path], None],
    check_verified: Callable[[Machine[Any]], None],
    releases: Releases,
) -> None:
    """One version boots at the first try; no boot entry leads to a slot that is not whole.

    A version that is given up after its tries fails here, although the machine would come back.
    """
    old, new = releases.old, releases.new
    check_state(cut.path)
    machine: Machine[Upgradable] = points.boot_installed(lab, cut.disk(), "cut", nics=())
    machine.os.login()
    version = machine.os.version()
    assert version == new if cut.after("done") else version in (old, new)
    check_verified(machine)
    assert machine.succeed(f"cat {machine.os.state_folder}/kept") == "kept\n"
    machine.os.wait_good()
    assert machine.restarts == 0
    states = {each.name: each for each in machine.os.slots()}
    running = states.pop(machine.os.slot())
    assert (running.version, running.state) == (version, "good")
    for other in states.values():
        # A newer version with a boot entry would have been booted.
        assert other.state == "good" if version == new else other.state in ("empty", "bad")
