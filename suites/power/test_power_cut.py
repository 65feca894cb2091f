"""A power cut on a working system: QEMU is killed, and the bytes that it had written stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Disk, Lab, Machine, points

pytestmark = pytest.mark.needs("persistence")

# A file counts as written when a sync after its rename has returned. The count is renamed into place:
# a read in the middle of a write would find it empty.
WRITER = (
    "mkdir -p {0}; i=0;"
    " while :; do i=$((i+1)); seq $i 20000 > {0}/new;"
    " mv {0}/new {0}/$i; sync -f {0}; echo $i > /run/new; mv /run/new /run/written; done"
)
CHECK = "for i in $(seq {1}); do seq $i 20000 | cmp - {0}/$i || exit 1; done"


@pytest.mark.tier(
    "smoke",
    cost=55,
    catches="files lost that the system had synced before its power failed",
    uses=("settled",),
)
def test_a_plain_power_cut_while_the_system_writes(
    lab: Lab,
    check_state: Callable[[Path], None],
    check_verified: Callable[[Machine[Any]], None],
) -> None:
    """The system boots again, and each file that it had synced is there, whole."""
    machine = lab.fork(points.settled)
    folder = f"{machine.os.state_folder}/written"
    machine.succeed(machine.os.as_root(f"({WRITER.format(folder)}) > /dev/null 2>&1 < /dev/null &"))
    machine.wait_until_succeeds("test $(cat /run/written) -ge 10")
    written = int(machine.succeed("cat /run/written"))
    machine.power_cut()
    name = points.system_disk(lab.image)
    raw = machine.export_disk(name, lab.folder / "cut.raw")
    check_state(raw)
    raw.unlink()
    file = machine.disk(name)
    disk = Disk(name, base=file.path, format=file.format)
    again = points.boot_installed(lab, disk, "again", nics=())
    again.os.login()
    again.succeed(again.os.as_root(CHECK.format(folder, written)), deadline=60)
    check_verified(again)
    again.os.wait_good()
    assert again.restarts == 0
