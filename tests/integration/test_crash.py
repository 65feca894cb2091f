"""A disk's writes are recorded, rebuilt at any point, and made to fail: with a real guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fixtures.machines import Boot
from harness.crash import Kind, Point, Rebuilder, Recording, places, sample
from harness.crash.filesystem import check_ext4, partition
from harness.machine import Machine
from harness.qemu.filter import WRITES
from harness.spec import MIB, Disk

BLOCK = 4096
BLOCKS = 64

WORKLOAD = "; ".join(
    # One block of one letter each, past the page cache; a flush after each eighth.
    f"i=0; while [ $i -lt {BLOCKS} ]".split("; ")
) + (
    f"; do printf '%04d' $i > /tmp/n; while [ $(wc -c < /tmp/n) -lt {BLOCK} ]; do cat /tmp/n /tmp/n > /tmp/m;"
    f" mv /tmp/m /tmp/n; done; dd if=/tmp/n of=/dev/vda bs={BLOCK} count=1 seek=$i oflag=direct"
    " conv=notrunc 2>/dev/null || exit 1; i=$((i+1));"
    " [ $((i % 8)) -ne 0 ] || sync /dev/vda; done"
)


def block(number: int) -> bytes:
    return b"%04d" % number * (BLOCK // 4)


def found(path: Path) -> list[bool]:
    """Which blocks of the workload are on a disk; each is whole or as it was before."""
    data = path.read_bytes()
    told = []
    for number in range(BLOCKS):
        here = data[number * BLOCK : (number + 1) * BLOCK]
        assert here in (block(number), bytes(BLOCK)), f"block {number} is torn"
        told.append(here == block(number))
    return told


def test_probe(boot: Boot, tmp_path: Path) -> None:
    machine = boot("micro", disks=[Disk("data", size=8 * MIB)]).wait_ready()
    with machine.recording("data") as recording:
        machine.succeed(WORKLOAD)
        recording.mark("half")
        print(machine.execute("mkfs.ext4 /dev/vda; mke2fs /dev/vda; mkfs.vfat /dev/vda; blkdiscard /dev/vda; fallocate --help; busybox --list | tr '\\n' ' '"))
    log = recording.log()
    for e in log.entries:
        print(e)
    print(recording.marks, log.writes, log.flushes)
    assert 0
