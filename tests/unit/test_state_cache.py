from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.cli import doctor
from harness.errors import StateError, StoreError
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec
from harness.state import Lease, Snapshot, StateCache
from harness.state.codec import shape
from harness.state.filesystem import lacks
from harness.state.record import FORMAT
from harness.state.save import copy_data
from harness.state.snapshot import FORMAT as SAVED
from harness.state.snapshot import SMALL, Seal
from tests.moments import Victim

ROOT = Path(__file__).resolve().parents[2]
SPEC = MachineSpec("one", "x86_64", Firmware(FirmwareKind.BIOS), memory=32 * MIB)
KEY = "k" * 64


def saved(folder: Path, size: int = 4096) -> Snapshot:
    """Save something that looks like a machine."""
    folder.mkdir(parents=True)
    (folder / "ram").write_bytes(b"r" * size)
    (folder / "devices").write_bytes(b"d" * 100)
    draft = Snapshot(folder, SPEC, "tcg", "max", "10.0.2", 1.0)
    return draft.write()


class Builder:
    def __init__(self, size: int = 4096) -> None:
        self.built = 0
        self.size = size

    def __call__(self, folder: Path) -> Snapshot:
        self.built += 1
        return saved(folder, self.size)


@pytest.fixture
def cache(tmp_path: Path) -> StateCache:
    return StateCache(tmp_path / "states")


@pytest.fixture
def say() -> Iterator[list[str]]:
    yield []


def test_a_state_is_built_once_and_lent(cache: StateCache) -> None:
    build = Builder()
    for _ in range(2):
        with cache.lease("live", {"a": "b"}, KEY, build) as lease:
            assert lease.snapshot.ram.read_bytes() == b"r" * 4096
            assert lease.snapshot.spec == SPEC
            assert lease.record.inputs == {"a": "b"}
    assert build.built == 1


def damage_record(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def damage_manifest(folder: Path) -> None:
    (folder / "snapshot.json").write_text("{}")


def cut_ram(folder: Path) -> None:
    os.truncate(folder / "ram", 10)


def write_into_ram(folder: Path) -> None:
    (folder / "ram").chmod(0o600)
    with (folder / "ram").open("r+b") as file:
        file.write(b"x")


def change_devices(folder: Path) -> None:
    path = folder / "devices"
    status = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"e" * 100)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def lose_ram(folder: Path) -> None:
    (folder / "ram").unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_record, damage_manifest, cut_ram, write_into_ram, change_devices, lose_ram],
)
def test_what_is_damaged_is_built_anew_and_told(
    cache: StateCache, damage: Callable[[Path], None], say: list[str]
) -> None:
    build = Builder()
    with cache.lease("live", {}, KEY, build) as lease:
        folder = lease.snapshot.folder
    damage(folder)
    assert [entry.status for entry in cache.list()] == ["damaged"]
    with cache.lease("live", {}, KEY, build, progress=say.append) as lease:
        assert lease.snapshot.faults() == []
    assert build.built == 2
    assert any("is damaged, making it anew" in line for line in say)


def test_a_base_that_is_gone_is_damage(cache: StateCache, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"base")

    def build(folder: Path) -> Snapshot:
        whole = saved(folder)
        return replace(whole, bases=((str(base), Seal.of(base)),)).write()

    cache.lease("live", {}, KEY, build).close()
    assert cache.list()[0].status == "ready"
    base.unlink()
    assert "base.raw" in cache.list()[0].why


@pytest.fixture
def of_another_version(cache: StateCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """A state that another version of Harness made, and uses."""
    with monkeypatch.context() as other:
        other.setattr("harness.state.record.FORMAT", "99.another")
        other.setattr("harness.state.snapshot.FORMAT", "99.another")
        lease = cache.lease("theirs", {}, KEY, Builder(MIB))
    with lease:
        yield lease


def test_what_another_version_made_is_left_to_it(
    cache: StateCache, of_another_version: Lease
) -> None:
    folder = of_another_version.snapshot.folder
    assert [entry.status for entry in cache.list()] == ["foreign"]
    assert cache.gc(everything=True) == 0, "it is in use"
    assert StateCache(cache.root, budget=1).trim() == 0
    of_another_version.close()
    assert cache.gc() == 0
    assert folder.exists()
    assert cache.gc(everything=True) > 0


def test_the_budget_takes_what_another_version_does_not_use_any_more(
    cache: StateCache, of_another_version: Lease
) -> None:
    of_another_version.close()
    os.utime(of_another_version.snapshot.folder / "state.json", (1, 1))
    cache.lease("ours", {}, KEY, Builder(MIB)).close()
    StateCache(cache.root, budget=MIB + MIB // 2).trim()
    assert [entry.record.name for entry in cache.list() if entry.record] == ["ours"]


def test_another_field_is_another_format() -> None:
    """Nobody has to think of a number: what one version added, the other does not take for damage."""

    @dataclass(frozen=True)
    class Record:
        name: str

    @dataclass(frozen=True)
    class Before:
        name: str
        more: str = ""

    Before.__name__ = "Record"
    assert shape(Record) != shape(Before)
    assert FORMAT != SAVED, "what the entry says counts as well as what the snapshot does"


def test_a_file_system_without_modes_serves(
    cache: StateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vfat does: it refuses a mode that it cannot keep."""

    def refused(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refused)
    with cache.lease("live", {}, KEY, Builder()) as lease:
        assert lease.snapshot.faults() == []


def test_a_build_that_fails_leaves_nothing(cache: StateCache) -> None:
    def fail(folder: Path) -> Snapshot:
        saved(folder)
        raise StateError("no")

    with pytest.raises(StateError, match="no"):
        cache.lease("live", {}, KEY, fail)
    assert cache.list() == []
    assert list((cache.root / "tmp").iterdir()) == []


def test_what_is_in_use_is_not_removed(cache: StateCache) -> None:
    with cache.lease("live", {}, KEY, Builder()) as lease:
        assert cache.list()[0].status == "in use"
        assert not cache.remove(lease.entry)
        assert cache.gc(everything=True) == 0
    assert cache.list()[0].status == "ready"
    assert cache.gc(everything=True) > 0
    assert cache.list() == []


def test_a_child_keeps_its_parent(cache: StateCache) -> None:
    parent = cache.lease("live", {}, KEY, Builder())
    child = cache.lease("installed", {}, "c" * 64, Builder(), parent=parent.entry)
    parent.close()
    assert not cache.remove(parent.entry)
    child.close()
    assert cache.remove(parent.entry)
    # The child alone is of no use: it is built anew by who asks for it.
    build = Builder()
    again = cache.lease("live", {}, KEY, Builder())
    cache.lease("installed", {}, "c" * 64, build, parent=again.entry).close()
    assert build.built == 0


def test_the_budget_takes_the_least_recently_used_first(tmp_path: Path, say: list[str]) -> None:
    cache = StateCache(tmp_path / "states", budget=2 * MIB + MIB // 2)
    names = ["a", "b", "c"]
    for number, name in enumerate(names[:2]):
        cache.lease(name, {}, name * 64, Builder(MIB)).close()
        record = next((tmp_path / "states" / "entries").glob(f"{name}-*")) / "state.json"
        os.utime(record, (number + 1, number + 1))
    cache.lease("a", {}, "a" * 64, Builder(MIB)).close()  # now the last used
    cache.lease("c", {}, "c" * 64, Builder(MIB), progress=say.append).close()
    left = {entry.record.name for entry in cache.list() if entry.record}
    assert left == {"a", "c"}
    assert any("removed the state b-" in line for line in say)


def test_the_budget_leaves_what_is_in_use(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "states", budget=1)
    with cache.lease("a", {}, "a" * 64, Builder(MIB)) as first:
        cache.lease("b", {}, "b" * 64, Builder(MIB)).close()
        assert {entry.id for entry in cache.list()} >= {first.entry}
    cache.gc()
    assert cache.list() == []


def test_discarding_makes_it_anew_even_where_others_use_it(cache: StateCache) -> None:
    build = Builder()
    with cache.lease("live", {}, KEY, build) as other:
        cache.discard(cache.lease("live", {}, KEY, build))
        with cache.lease("live", {}, KEY, build) as lease:
            assert lease.record.created > other.record.created
        cache.discard(other)
        assert cache.list()[0].status != "damaged", "what was built since is not discarded"
    assert build.built == 2


def test_an_unwritable_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file")
    with pytest.raises(StoreError, match="making the cache of states") as caught:
        StateCache(tmp_path / "states").lease("live", {}, KEY, Builder())
    assert "HARNESS_CACHE" in caught.value.hint


def test_a_cache_without_holes_or_maps_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file really has all its blocks, as one on vfat has; that it is not mapped is a fake."""
    assert lacks(tmp_path) == []

    def filled(fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr("harness.state.filesystem.os.truncate", filled)
    monkeypatch.setattr("harness.state.filesystem.mmap.mmap", refused)
    holes, maps = lacks(tmp_path)
    assert holes.startswith("keeps no holes in files: ")
    assert maps.startswith("does not map files (No such device): ")


def test_doctor_tells_of_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = doctor._cache_file_system(tmp_path / "file" / "cache")
    assert (found.ok, found.needed) == (False, True)
    assert "Not a directory" in found.text
    assert "HARNESS_CACHE" in found.text


FULL = """
import sys
from pathlib import Path
from harness.errors import DiskFullError
from harness.state.cache import StateCache
from harness.store.space import explained
from tests.unit.test_state_cache import KEY, saved

cache = StateCache(Path(sys.argv[1]) / "states")
cache.lease("small", {}, KEY, saved).close()

def build(folder):
    with explained(folder, "saving a machine"):
        made = saved(folder)
        (folder / "ram").write_bytes(bytes(8 << 20))
        return made

try:
    cache.lease("live", {}, KEY, build)
except DiskFullError as error:
    print("told:", error)
print([(entry.record.name, entry.status) for entry in cache.list()])
cache.lease("small", {}, KEY, build).close()
"""


def said_on(kind: str, folder: Path, program: str) -> str:
    """Return what a program prints that finds a file system of this kind in a folder; told of it."""
    mount = f'mount -t {kind} none {folder} && exec {sys.executable} -c "$0" {folder}'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t {kind} none {folder}"], check=False).returncode:
        pytest.skip(
            f"no {kind.partition(' ')[0]} of our own here: allow user namespaces"
            " (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)"
        )
    done = subprocess.run(
        [*inside, mount, program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    said = said_on("tmpfs -o size=4m", tmp_path, FULL)
    assert "no space left" in said
    assert "[('small', 'ready')]" in said


NO_HOLES = """
import os, sys
from pathlib import Path
from harness.cli import doctor
from harness.spec import MIB
from harness.state.filesystem import lacks
from harness.state.save import Memory, copy_data
from tests.unit.test_state_cache import StateCache, Builder, KEY

here = Path(sys.argv[1])
print("lacks:", lacks(here))
found = doctor._cache_file_system(here / "cache")
print("doctor:", found.ok, found.needed, found.text.splitlines()[-1])
memory = Memory.create("saved", 64 * MIB)
os.pwrite(memory.fd, b"data" * 1024, 32 * MIB)
with (here / "ram").open("xb") as target:
    copy_data(memory.fd, target.fileno())
print("saved:", (here / "ram").stat().st_blocks * 512)
fork = Memory.create("fork", 0, here / "ram")
print("copied:", os.fstat(fork.fd).st_blocks * 512, os.fstat(fork.fd).st_size == 64 * MIB)
print("same:", os.pread(fork.fd, 4096, 32 * MIB) == b"data" * 1024)
StateCache(here / "states").lease("live", {}, KEY, Builder(), progress=print).close()
"""


def test_where_holes_are_not_told_memory_keeps_them(tmp_path: Path) -> None:
    """On ramfs, whose SEEK_DATA says that all is data, as many a FUSE file system's does."""
    said = said_on("ramfs", tmp_path, NO_HOLES)
    lines = {name: text for name, _, text in (line.partition(": ") for line in said.splitlines())}
    assert "does not tell holes" in lines["lacks"]
    assert lines["saved"] == "4096"
    # By blocks of 64 KiB, not all of it.
    assert lines["copied"] == f"{64 * 1024} True"
    assert lines["same"] == "True"
    assert lines["doctor"].startswith("False False put the cache on a local disk")
    assert f"the file system of {tmp_path / 'states'} does not tell holes" in said


def _ask(root: Path, log: Path, gate: object) -> None:
    def build(folder: Path) -> Snapshot:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)
        return saved(folder)

    gate.wait()  # type: ignore[attr-defined]
    StateCache(root).lease("live", {}, KEY, build).close()


def test_many_processes_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    processes = [
        context.Process(target=_ask, args=(tmp_path / "states", tmp_path / "log", gate))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def left_over(cache: StateCache) -> list[str]:
    """Return what lies in a cache and belongs to no state."""
    entries = {path.name for path in (cache.root / "entries").iterdir()}
    locks = [path for path in (cache.root / "locks").iterdir() if path.stem not in entries]
    return [str(path) for path in [*locks, *(cache.root / "tmp").iterdir()]]


@pytest.mark.parametrize("action", ["build", "discard", "collect"])
def test_kill_9_at_every_moment(tmp_path: Path, action: str) -> None:
    """Before each change of a file: nothing that was whole is lost, and the next gc leaves nothing."""
    begin = StateCache(tmp_path / "begin")
    begin.lease("live", {}, KEY, Builder()).close()
    begin.lease("other", {}, KEY, Builder()).close()
    with Victim("tests.unit.states_churn") as victim:
        for moment in itertools.count(1):
            cache = StateCache(tmp_path / str(moment))
            shutil.copytree(begin.root, cache.root)
            with cache.lease("other", {}, KEY, Builder()) as used:
                survived = victim.survives(moment, action, cache.root)
                assert used.snapshot.faults() == []
                found = {entry.id: entry.status for entry in cache.list()}
                half = {"damaged"} if action == "discard" else set()
                assert set(found.values()) <= {"ready", "in use", "interrupted"} | half
                whole = {path.name for path in (cache.root / "entries").iterdir()} - {
                    name for name, status in found.items() if status == "damaged"
                }
                cache.gc()
                now = {entry.id for entry in cache.list() if entry.status in ("ready", "in use")}
                assert now == whole, "gc took what was whole"
                assert used.entry in now
                assert left_over(cache) == []
            with cache.lease("live", {}, KEY, Builder()) as lease:
                assert lease.snapshot.faults() == []
            if survived:
                break
    assert moment > 10, "the hook saw nothing"


def test_copying_leaves_holes_out(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("w+b") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"data" * 1024)
    with source.open("rb") as one, target.open("w+b") as two:
        copy_data(one.fileno(), two.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < MIB


def test_a_fork_s_disks_are_overlays_on_the_saved_ones(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "data.qcow2").touch()
    spec = MachineSpec(
        "one",
        "x86_64",
        Firmware(FirmwareKind.BIOS),
        disks=(Disk("data", size=MIB), Disk("seed", base=Path("/seed"), readonly=True)),
    )
    fork = Snapshot(tmp_path, spec, "tcg", "max", "10", 0.0).fork_spec("two")
    assert fork.name == "two"
    assert fork.disks[0].base == tmp_path / "disks" / "data.qcow2"
    assert fork.disks[0].guest_serial == spec.disks[0].guest_serial
    assert fork.disks[1] == spec.disks[1]
    assert fork.mac(fork.nics[0]) == spec.mac(spec.nics[0])


def test_a_large_file_that_was_written_to_is_damage(cache: StateCache) -> None:
    with cache.lease("live", {}, KEY, Builder(SMALL + 4096)) as lease:
        assert lease.snapshot.faults() == []
        write_into_ram(lease.snapshot.folder)
        assert "was changed after it had been saved" in lease.snapshot.faults()[0]


def test_the_budget_takes_a_child_before_its_parent(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "states")
    with cache.lease("live", {}, KEY, Builder(MIB)) as parent:
        cache.lease("installed", {}, "c" * 64, Builder(MIB), parent=parent.entry).close()
        os.utime(parent.snapshot.folder / "state.json", (1, 1))
    StateCache(tmp_path / "states", budget=MIB + MIB // 2).trim()
    assert [entry.record.name for entry in cache.list() if entry.record] == ["live"]
