"""A guest's disk is recorded, rebuilt at crash points, and made to fail."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Lab
from harness.errors import UsageError
from harness.machine import Machine
from harness.powercut import Kind, Point, Rebuilder, Recording, WriteLog, places, sample
from harness.powercut.ext4 import check_ext4
from harness.qemu.disk import digest
from harness.qemu.filter import WRITES
from harness.spec import MIB, Disk

SECTOR = 512
BLOCK = 4096
BLOCKS = 40
FLUSHED = 8  # blocks between flushes

# Each block repeats its number. Direct I/O bypasses the page cache, so each block is one write.
WORKLOAD = f"""
i=0
while [ $i -lt {BLOCKS} ]; do
  yes $(printf %07d $i) | head -c {BLOCK} > /tmp/block
  dd if=/tmp/block of=/dev/vda bs={BLOCK} count=1 seek=$i oflag=direct conv=notrunc 2>/dev/null || exit 1
  i=$((i+1))
  [ $((i % {FLUSHED})) -ne 0 ] || dd if=/dev/null of=/dev/vda conv=fsync,notrunc 2>/dev/null || exit 1
done
"""


def block(number: int) -> bytes:
    return b"%07d\n" % number * (BLOCK // 8)


OLD = b"\xee" * BLOCK


@pytest.fixture(scope="module")
def recorded(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, str]:
    """A recording of the workload on a disk with old data, and the checksum of the disk at its end."""
    base = tmp_path_factory.mktemp("base") / "base.raw"
    base.write_bytes(OLD * (2 * MIB // BLOCK))
    machine = shared_lab.boot("micro", disks=[Disk("data", base=base)]).wait_ready()
    with machine.recording("data") as recording:
        machine.succeed(WORKLOAD)
        recording.mark("written")
        machine.succeed("blkdiscard -o 1048576 -l 65536 /dev/vda")
        machine.succeed(
            "head -c 4096 /dev/zero | dd of=/dev/vda bs=4096 seek=300 conv=fsync,notrunc"
        )
    machine.stop()
    after = digest(machine.disk("data"))
    recording.pack()
    return recording, after


@pytest.fixture
def rebuilder(recorded: tuple[Recording, str], tmp_path: Path) -> Rebuilder:
    return Rebuilder(recorded[0], tmp_path / "shared")


def versions(path: Path) -> list[list[bool]]:
    """Return for each sector of each block whether it holds new data; otherwise it holds old data."""
    rows = []
    with path.open("rb") as file:
        for number in range(BLOCKS):
            here, new = file.read(BLOCK), block(number)
            cells = []
            for at in range(0, BLOCK, SECTOR):
                cell = here[at : at + SECTOR]
                assert cell in (new[at : at + SECTOR], OLD[:SECTOR]), f"block {number} is foreign"
                cells.append(cell != OLD[:SECTOR])
            rows.append(cells)
    return rows


def expected(log: WriteLog, place: int) -> tuple[int, int]:
    """Return the number of blocks written and of blocks flushed, counted without the library."""
    written = flushed = 0
    for entry in log.entries[:place]:
        if entry.flags & 1:
            flushed = written
        else:
            written += 1
    return written, flushed


def test_the_log_has_the_writes_and_flushes_of_the_guest(recorded: tuple[Recording, str]) -> None:
    recording, _ = recorded
    entries = recording.log().entries[: recording.at("written")]
    blocks = [entry.sector * SECTOR // BLOCK for entry in entries if entry.changes]
    assert blocks == list(range(BLOCKS))
    flushes = [number for number, entry in enumerate(entries) if entry.flush]
    assert flushes == [(FLUSHED + 1) * (n + 1) - 1 for n in range(BLOCKS // FLUSHED)]


@pytest.mark.parametrize("kind", list(Kind))
def test_pending_writes_survive_as_the_kind_of_the_point_says(
    recorded: tuple[Recording, str], rebuilder: Rebuilder, tmp_path: Path, kind: Kind
) -> None:
    log = recorded[0].log()
    gaps = tears = 0
    for place in places(log, end=recorded[0].at("written")):
        path = rebuilder.build(Point(place, kind, seed=place), tmp_path / "disk.raw")
        here = versions(path)
        written, flushed = expected(log, place)
        assert all(map(all, here[:flushed])), f"{place}: a flushed write is lost"
        assert not any(map(any, here[written:])), f"{place}: a later write is there"
        between = here[flushed:written]
        if kind is Kind.CLEAN:
            assert all(map(all, between))
        if kind is Kind.FLUSHED:
            assert not any(map(any, between))
        whole = [all(cells) for cells in between]
        gaps += whole != sorted(whole, reverse=True)
        tears += [any(cells) for cells in between] != whole
    assert (gaps > 3) == kind.drawn
    assert (tears > 3) == (kind is Kind.REORDERED)


def test_the_last_point_is_the_disk_at_its_end(
    recorded: tuple[Recording, str], rebuilder: Rebuilder, tmp_path: Path
) -> None:
    recording, after = recorded
    log = recording.log()
    assert any(entry.discard for entry in log.entries) or log.writes > BLOCKS
    path = rebuilder.build(Point(len(log.entries), Kind.FLUSHED), tmp_path / "disk.raw")
    assert subprocess.check_output(["sha256sum", str(path)], text=True).split()[0] == after


def test_a_point_is_the_same_disk_in_any_order_of_rebuilding(
    recorded: tuple[Recording, str], rebuilder: Rebuilder, tmp_path: Path
) -> None:
    points = sample(places(recorded[0].log()), 8, seed=3)
    forward = [rebuilder.build(p, tmp_path / f"f-{p.name}").read_bytes() for p in points]
    for point, before in reversed(list(zip(points, forward, strict=True))):
        again = Rebuilder(Recording.read(recorded[0].folder), tmp_path / "other")
        named = Point.parse(point.name)
        assert again.build(named, tmp_path / "again").read_bytes() == before
        assert rebuilder.build(named, tmp_path / "back").read_bytes() == before


def test_a_power_cut_ends_a_recording(lab: Lab) -> None:
    machine = lab.boot("micro", disks=[Disk("data", size=2 * MIB)]).wait_ready()
    with machine.recording("data") as recording:
        machine.succeed(WORKLOAD)
        machine.power_cut()
    log = recording.log()
    assert (log.writes, log.flushes) == (BLOCKS, BLOCKS // FLUSHED)
    assert recording.at("end") == len(log.entries)


def test_a_recording_of_a_fork_begins_at_the_fork(lab: Lab, tmp_path: Path) -> None:
    machine = lab.boot("micro", saveable=True, disks=[Disk("data", size=2 * MIB)]).wait_ready()
    machine.succeed("yes parent | head -c 512 | dd of=/dev/vda bs=512 seek=4000 conv=fsync,notrunc")
    with machine.fork() as fork, fork.recording("data") as recording:
        fork.succeed(WORKLOAD)
        log = recording.log()
        assert (log.writes, log.flushes) == (BLOCKS, BLOCKS // FLUSHED)
        assert fork.writes("data") == BLOCKS
    recording.pack()
    path = Rebuilder(recording, tmp_path / "shared").build(Point(0, Kind.CLEAN), tmp_path / "disk")
    data = path.read_bytes()
    assert data[4000 * SECTOR :].startswith(b"parent\n")
    assert not any(data[: BLOCKS * BLOCK])


def test_synced_files_survive_at_every_point_on_ext4(lab: Lab, tmp_path: Path) -> None:
    """Files that were synced before a mark exist after it, and e2fsck finds no damage."""
    base = tmp_path / "base.raw"
    with base.open("wb") as file:
        file.truncate(32 * MIB)
    env = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", str(base)], check=True, env=env)
    machine = lab.boot("micro", disks=[Disk("data", base=base)]).wait_ready()
    machine.succeed("mkdir -p /mnt", "modprobe ext4 || true", "mount -t ext4 /dev/vda /mnt")
    with machine.recording("data") as recording:
        for number in range(6):
            machine.succeed(
                f"mkdir /mnt/d{number}; yes {number} | head -c 9000 > /mnt/d{number}/file; sync"
            )
            recording.mark(f"synced-{number}")
            machine.succeed(f"rm -rf /mnt/d{number - 2}; yes x | head -c 200000 > /mnt/scratch")
        machine.power_cut()
    log = recording.log()
    rebuilder = Rebuilder(recording, tmp_path / "shared")
    for point in sample(places(log), 24, seed=1):
        disk = rebuilder.build(point, tmp_path / f"{point.name}.raw")
        check_ext4(disk)
        # debugfs does not replay the journal, so e2fsck does; status 1 means that it did.
        replay = ["e2fsck", "-p", "-E", "journal_only", str(disk)]
        assert subprocess.run(replay, capture_output=True, check=False, env=env).returncode < 2
        for number in range(4, 6):
            if point.place >= recording.at(f"synced-{number}"):
                content = subprocess.run(
                    ["debugfs", "-R", f"cat /d{number}/file", str(disk)],
                    capture_output=True,
                    check=True,
                    env=env,
                ).stdout
                assert content == (b"%d\n" % number) * 4500, f"{point.name}: file {number}"
        disk.unlink()


# --- disks that fail ----------------------------------------------------------------------------

READ = "dd if=/dev/vda of=/dev/null bs=4096 count=1 skip={} iflag=direct"
WRITE = "dd if=/dev/zero of=/dev/vda bs=4096 count=1 seek={} oflag=direct conv=notrunc"


@pytest.fixture(scope="module")
def booted(shared_lab: Lab) -> Machine:
    return shared_lab.boot("micro", disks=[Disk("data", size=8 * MIB)]).wait_ready()


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    yield booted
    with contextlib.suppress(UsageError):
        booted.heal_disk("data")


def test_a_disk_fails_and_heals(machine: Machine) -> None:
    machine.succeed(READ.format(0), WRITE.format(0))
    before = machine.disk_errors("data")
    machine.disk_fault("data")
    machine.fail(READ.format(0), WRITE.format(1))
    assert machine.disk_errors("data") == before + 2
    assert machine.running
    machine.heal_disk("data")
    machine.succeed(READ.format(0), WRITE.format(1))
    assert machine.disk_errors("data") == before + 2


def test_a_disk_is_full_after_a_number_of_writes(machine: Machine) -> None:
    machine.disk_fault("data", on=WRITES, after=3)
    machine.succeed(*(WRITE.format(number) for number in range(3)))
    machine.fail(WRITE.format(3), WRITE.format(0))
    machine.succeed(READ.format(3))


def test_a_fault_of_sectors_leaves_the_others_alone(machine: Machine) -> None:
    machine.disk_fault("data", on=("read",), sectors=range(8, 16))
    machine.succeed(READ.format(0), READ.format(2), WRITE.format(1))
    machine.fail(READ.format(1))
    machine.heal_disk("data")
    machine.disk_fault("data", on=("write",), once=True)
    machine.fail(WRITE.format(1))
    machine.succeed(WRITE.format(1))


def test_a_flush_fails_although_writes_succeed(machine: Machine) -> None:
    machine.disk_fault("data", on=("flush",))
    machine.succeed(WRITE.format(1))
    machine.fail("dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync,notrunc")


def test_a_fault_works_on_a_disk_that_is_recorded(machine: Machine) -> None:
    with machine.recording("data") as recording:
        machine.succeed(WRITE.format(1))
        machine.disk_fault("data", on=WRITES)
        machine.fail(WRITE.format(2))
        with pytest.raises(UsageError, match="no filter record-data on top"):
            machine._disks.end_recording("data")
        machine.heal_disk("data")
        machine.succeed(WRITE.format(3))
    sectors = [entry.sector for entry in recording.log().entries if entry.changes]
    assert sectors == [8, 24]


def test_a_disk_with_a_fault_cannot_be_recorded(machine: Machine) -> None:
    machine.disk_fault("data")
    with pytest.raises(UsageError, match="heal it first"), machine.recording("data"):
        pass
