"""The plug is pulled on a system that works: QEMU is killed, and what it had written stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.machines import Boot
from fixtures.points import alone, system_disk
from fixtures.states import ForkOf
from harness.qemu.disk import qemu_img
from harness.spec import Disk
from suites.conftest import check_booted_once, check_verified, settled

pytestmark = pytest.mark.needs("persistence")

# A file counts as written when a sync after its rename has returned.
WRITER = (
    "mkdir -p {0}; i=0;"
    " while :; do i=$((i+1)); seq $i 20000 > {0}/new;"
    " mv {0}/new {0}/$i; sync -f {0}; echo $i > /run/written; done"
)
CHECK = "for i in $(seq {1}); do seq $i 20000 | cmp - {0}/$i || exit 1; done"


def test_a_plain_power_cut_while_the_system_writes(
    fork_of: ForkOf, boot: Boot, check_state: Callable[[Path], None]
) -> None:
    """The system boots again, and each file that it had synced is there, whole."""
    machine = fork_of(settled)
    folder = f"{machine.os.state_folder}/written"
    machine.succeed(machine.os.as_root(f"({WRITER.format(folder)}) > /dev/null 2>&1 < /dev/null &"))
    machine.wait_until_succeeds("test $(cat /run/written) -ge 10")
    written = int(machine.succeed("cat /run/written"))
    machine.power_cut()
    file = machine.disk(system_disk(boot.image))
    raw = boot.folder / "cut.raw"
    qemu_img("convert", "-f", file.format, "-O", "raw", str(file.path), str(raw))
    check_state(raw)
    raw.unlink()
    disk = Disk(system_disk(boot.image), base=file.path, format=file.format)
    again = alone(boot, disk, "again", network=False)
    again.os.login()
    again.succeed(again.os.as_root(CHECK.format(folder, written)), deadline=60)
    check_verified(again)
    again.os.wait_good()
    check_booted_once(again)
