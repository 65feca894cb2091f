"""The plug is pulled on a system that works: QEMU is killed, and what it had written stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.machines import Boot
from fixtures.points import TARGET, USER
from fixtures.states import ForkOf
from harness.qemu.disk import qemu_img
from harness.spec import Disk
from suites.conftest import settled

pytestmark = pytest.mark.needs("install")

# A file counts as written when a sync after its rename has returned.
WRITER = (
    "mkdir -p /var/written; i=0;"
    " while :; do i=$((i+1)); seq $i 20000 > /var/written/new;"
    " mv /var/written/new /var/written/$i; sync -f /var/written; echo $i > /run/written; done"
)
CHECK = "for i in $(seq {}); do seq $i 20000 | cmp - /var/written/$i || exit 1; done"


def test_a_plain_power_cut_while_the_system_writes(
    fork_of: ForkOf, boot: Boot, check_state: Callable[[Path], None]
) -> None:
    """The system boots again, and each file that it had synced is there, whole."""
    machine = fork_of(settled)
    machine.succeed(machine.os.as_root(f"({WRITER}) > /dev/null 2>&1 < /dev/null &"))
    machine.wait_until_succeeds("test $(cat /run/written) -ge 10")
    written = int(machine.succeed("cat /run/written"))
    machine.power_cut()
    file = machine.disk("target")
    raw = boot.folder / "cut.raw"
    qemu_img("convert", "-f", file.format, "-O", "raw", str(file.path), str(raw))
    check_state(raw)
    raw.unlink()
    again = boot(
        name="again",
        medium=False,
        disks=[Disk("target", base=file.path, format=file.format, serial=TARGET)],
        nics=(),
        authorize=False,
        account=USER,
    )
    again.os.login()
    again.succeed(again.os.as_root(CHECK.format(written)), deadline=60)
    assert again.os.verified()
    again.os.wait_good()
