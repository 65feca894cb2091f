"""The cache of states: built once, lent, rebuilt when damaged, collected; and the saved machine."""

from __future__ import annotations

import errno
import itertools
import json
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
from harness.spec import (
    MIB,
    Account,
    ConsoleDevice,
    Disk,
    Firmware,
    FirmwareKind,
    GuestForward,
    MachineSpec,
    Nic,
    Tpm,
)
from harness.states import Lease, Snapshot, StateCache
from harness.states.filesystem import lacks
from harness.states.manifest import FORMAT
from harness.states.save import copy_data
from harness.states.snapshot import FORMAT as SAVED
from harness.states.snapshot import SMALL, Seal, Shell, shape
from tests.moments import Victim
from tests.programs import need

ROOT = Path(__file__).resolve().parents[2]
SPEC = MachineSpec("one", "x86_64", Firmware(FirmwareKind.BIOS), memory=32 * MIB)
KEY = "k" * 64


def saved(folder: Path, size: int = 4096) -> Snapshot:
    """Save files that look like a machine."""
    folder.mkdir(parents=True)
    (folder / "ram").write_bytes(b"r" * size)
    (folder / "devices").write_bytes(b"d" * 100)
    draft = Snapshot(folder, SPEC, "pc-q35-10.0", "tcg", "max", "10.0.2", 1.0)
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


def test_a_state_is_built_once_and_lent(cache: StateCache) -> None:
    build = Builder()
    for _ in range(2):
        with cache.lease("live", {"a": "b"}, KEY, build) as lease:
            assert lease.snapshot.ram.read_bytes() == b"r" * 4096
            assert lease.snapshot.spec == SPEC
            assert lease.manifest.inputs == {"a": "b"}
    assert build.built == 1


def damage_manifest(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def damage_snapshot(folder: Path) -> None:
    (folder / "snapshot.json").write_text("{}")


def add_a_field(folder: Path) -> None:
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {"unknown": 1}))


def change_a_type(folder: Path) -> None:
    content = json.loads((folder / "snapshot.json").read_text())
    content["spec"]["memory"] = "32MiB"
    (folder / "snapshot.json").write_text(json.dumps(content))


def break_the_spec(folder: Path) -> None:
    """The spec refuses a machine without memory."""
    content = json.loads((folder / "snapshot.json").read_text())
    content["spec"]["memory"] = 0
    (folder / "snapshot.json").write_text(json.dumps(content))


def cut_ram(folder: Path) -> None:
    (folder / "ram").chmod(0o600)
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
    [
        damage_manifest,
        damage_snapshot,
        add_a_field,
        change_a_type,
        break_the_spec,
        cut_ram,
        write_into_ram,
        change_devices,
        lose_ram,
    ],
)
def test_a_damaged_state_is_rebuilt(cache: StateCache, damage: Callable[[Path], None]) -> None:
    lines: list[str] = []
    build = Builder()
    with cache.lease("live", {}, KEY, build) as lease:
        folder = lease.snapshot.folder
    damage(folder)
    assert [entry.status for entry in cache.list()] == ["damaged"]
    with cache.lease("live", {}, KEY, build, say=lines.append) as lease:
        assert lease.snapshot.faults() == []
    assert build.built == 2
    assert any("is damaged; rebuilding it" in line for line in lines)


def test_a_state_without_its_base_is_damaged(cache: StateCache, tmp_path: Path) -> None:
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
def foreign(cache: StateCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """Yield a state that another version of Harness built and uses."""
    with monkeypatch.context() as other:
        other.setattr("harness.states.manifest.FORMAT", "99.another")
        other.setattr("harness.states.snapshot.FORMAT", "99.another")
        lease = cache.lease("theirs", {}, KEY, Builder(MIB))
    with lease:
        yield lease


def test_gc_keeps_the_states_of_another_version(cache: StateCache, foreign: Lease) -> None:
    folder = foreign.snapshot.folder
    assert [entry.status for entry in cache.list()] == ["foreign"]
    assert cache.gc(everything=True) == 0, "it is in use"
    assert StateCache(cache.root, budget=1).trim() == 0
    foreign.close()
    assert cache.gc() == 0
    assert folder.exists()
    assert cache.gc(everything=True) > 0


def test_the_budget_removes_unused_states_of_another_version(
    cache: StateCache, foreign: Lease
) -> None:
    foreign.close()
    os.utime(foreign.snapshot.folder / "state.json", (1, 1))
    cache.lease("ours", {}, KEY, Builder(MIB)).close()
    StateCache(cache.root, budget=MIB + MIB // 2).trim()
    assert [entry.manifest.name for entry in cache.list() if entry.manifest] == ["ours"]


def test_another_field_makes_another_format() -> None:
    """A state with a new field is foreign to older versions of Harness, not damaged."""

    @dataclass(frozen=True)
    class Manifest:
        name: str

    @dataclass(frozen=True)
    class Extended:
        name: str
        more: str = ""

    Extended.__name__ = "Manifest"
    assert shape(Manifest) != shape(Extended)
    assert FORMAT != SAVED, "the fields of the state's manifest count, too"


def test_a_snapshot_survives_writing_and_reading(tmp_path: Path) -> None:
    spec = MachineSpec(
        "one",
        "x86_64",
        Firmware(FirmwareKind.KERNEL, Path("/k"), Path("/i"), "quiet"),
        memory=256 * MIB,
        disks=(Disk("data", size=MIB), Disk("base", base=Path("/b"), serial="B-1")),
        nics=(
            Nic(forward=(22, 80), mac="52:54:00:00:00:01"),
            Nic("net1", guest_forwards=(GuestForward("updates"),)),
        ),
        console=ConsoleDevice.VIRTIO,
        credentials=(("a", "b"),),
    )
    uefi = replace(
        spec, firmware=Firmware(FirmwareKind.UEFI), disks=(), credentials=(), tpm=Tpm(Path("/t"))
    )
    for number, machine in enumerate((spec, uefi, SPEC)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "ram").write_bytes(b"r")
        draft = Snapshot(folder, machine, "pc-q35-10.0", "tcg", "max", "10.0.2", 1.0)
        for snapshot in (
            draft,
            replace(draft, shell=Shell(3, "up"), account=Account("mate", "secret"), host_key="k"),
            replace(draft, cold="a device", bases=(("/b", Seal(1, 2, "")),)),
        ):
            written = snapshot.write()
            assert Snapshot.read(folder) == written


def test_a_state_needs_no_modes_of_files(
    cache: StateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vfat refuses modes that it cannot store."""

    def refused(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refused)
    with cache.lease("live", {}, KEY, Builder()) as lease:
        assert lease.snapshot.faults() == []


def test_a_failed_build_leaves_nothing(cache: StateCache) -> None:
    def fail(folder: Path) -> Snapshot:
        saved(folder)
        raise StateError("no")

    with pytest.raises(StateError, match="no"):
        cache.lease("live", {}, KEY, fail)
    assert cache.list() == []
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_state_in_use_is_not_removed(cache: StateCache) -> None:
    with cache.lease("live", {}, KEY, Builder()) as lease:
        assert cache.list()[0].status == "in use"
        assert not cache.remove(lease.entry)
        assert cache.gc(everything=True) == 0
    assert cache.list()[0].status == "ready"
    assert cache.gc(everything=True) > 0
    assert cache.list() == []


def test_a_child_in_use_keeps_its_parent(cache: StateCache) -> None:
    parent = cache.lease("live", {}, KEY, Builder())
    child = cache.lease("installed", {}, "c" * 64, Builder(), parent=parent.entry)
    parent.close()
    assert not cache.remove(parent.entry)
    child.close()
    assert cache.remove(parent.entry)
    # A child is usable again once its parent has been rebuilt.
    build = Builder()
    again = cache.lease("live", {}, KEY, Builder())
    cache.lease("installed", {}, "c" * 64, build, parent=again.entry).close()
    assert build.built == 0


def test_the_budget_removes_the_least_recently_used_state(tmp_path: Path) -> None:
    lines: list[str] = []
    cache = StateCache(tmp_path / "states", budget=2 * MIB + MIB // 2)
    names = ["a", "b", "c"]
    for number, name in enumerate(names[:2]):
        cache.lease(name, {}, name * 64, Builder(MIB)).close()
        manifest = next((tmp_path / "states" / "entries").glob(f"{name}-*")) / "state.json"
        os.utime(manifest, (number + 1, number + 1))
    cache.lease("a", {}, "a" * 64, Builder(MIB)).close()  # now it is the last used one
    cache.lease("c", {}, "c" * 64, Builder(MIB), say=lines.append).close()
    left = {entry.manifest.name for entry in cache.list() if entry.manifest}
    assert left == {"a", "c"}
    assert any("removed the state b-" in line for line in lines)


def test_the_budget_removes_no_state_in_use(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "states", budget=1)
    with cache.lease("a", {}, "a" * 64, Builder(MIB)) as first:
        cache.lease("b", {}, "b" * 64, Builder(MIB)).close()
        assert {entry.id for entry in cache.list()} >= {first.entry}
    cache.gc()
    assert cache.list() == []


def test_a_discarded_state_is_rebuilt_while_others_use_it(cache: StateCache) -> None:
    build = Builder()
    with cache.lease("live", {}, KEY, build) as other:
        cache.discard(cache.lease("live", {}, KEY, build))
        with cache.lease("live", {}, KEY, build) as lease:
            assert lease.manifest.created > other.manifest.created
        cache.discard(other)
        assert cache.list()[0].status != "damaged", "the rebuilt state is not discarded"
    assert build.built == 2


def test_a_state_that_is_damaged_whenever_it_is_built_is_an_error(cache: StateCache) -> None:
    built: list[Path] = []

    def build(folder: Path) -> Snapshot:
        built.append(folder)
        snapshot = saved(folder)
        cut_ram(folder)
        return snapshot

    with pytest.raises(StateError, match="the state live cannot be used as soon as") as caught:
        cache.lease("live", {}, KEY, build)
    assert "ram has 10 bytes, not 4096" in caught.value.evidence
    assert len(built) == 3


def test_a_missing_or_damaged_state_is_not_lent(cache: StateCache) -> None:
    with pytest.raises(StateError, match="does not exist"):
        cache.lend("live-none")
    lease = cache.lease("live", {}, KEY, Builder())
    with cache.lend(lease.entry) as other:
        assert other.snapshot == lease.snapshot
    lease.close()
    damage_snapshot(lease.folder)
    with pytest.raises(StateError, match=r"cannot be used: .*snapshot\.json is missing or damaged"):
        cache.lend(lease.entry)


def test_an_unwritable_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file")
    with pytest.raises(StoreError, match="making the state live") as caught:
        StateCache(tmp_path / "states").lease("live", {}, KEY, Builder())
    assert "HARNESS_CACHE" in caught.value.hint


def test_missing_features_of_the_file_system_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file really has all its blocks, as on vfat; the failing map is simulated."""
    assert lacks(tmp_path) == []

    def filled(fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr("harness.states.filesystem.os.truncate", filled)
    monkeypatch.setattr("harness.states.filesystem.mmap.mmap", refused)
    holes, maps = lacks(tmp_path)
    assert holes.startswith("has no holes in files: ")
    assert maps.startswith("cannot map files (No such device): ")


def test_doctor_reports_an_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = doctor._cache_file_system(tmp_path / "file" / "cache")
    assert (check.ok, check.needed) == (False, True)
    assert "Not a directory" in check.text
    assert "HARNESS_CACHE" in check.text


FULL = """
import sys
from pathlib import Path
from harness.errors import DiskFullError
from harness.states.cache import StateCache
from harness.cache.space import explained
from tests.unit.test_states_cache import KEY, saved

cache = StateCache(Path(sys.argv[1]) / "states")
cache.lease("small", {}, KEY, saved).close()

def build(folder):
    with explained(folder, "saving a machine"):
        snapshot = saved(folder)
        (folder / "ram").write_bytes(bytes(8 << 20))
        return snapshot

try:
    cache.lease("live", {}, KEY, build)
except DiskFullError as error:
    print("error:", error)
print([(entry.manifest.name, str(entry.status)) for entry in cache.list()])
cache.lease("small", {}, KEY, build).close()
"""


def output_on(kind: str, folder: Path, program: str) -> str:
    """Run a program with a file system of a kind mounted on a folder; return its output."""
    need("unshare")
    mount = f'mount -t {kind} none {folder} && exec {sys.executable} -c "$0" {folder}'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t {kind} none {folder}"], check=False).returncode:
        pytest.skip(
            f"no {kind.partition(' ')[0]} of our own here: allow user namespaces"
            " (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)"
        )
    process = subprocess.run(
        [*inside, mount, program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_full_disk_is_explained_and_loses_no_state(tmp_path: Path) -> None:
    output = output_on("tmpfs -o size=4m", tmp_path, FULL)
    assert "no space left" in output
    assert "[('small', 'ready')]" in output


NO_HOLES = """
import os, sys
from pathlib import Path
from harness.cli import doctor
from harness.spec import MIB
from harness.states.filesystem import lacks
from harness.states.save import Memory, copy_data
from tests.unit.test_states_cache import StateCache, Builder, KEY

here = Path(sys.argv[1])
print("lacks:", lacks(here))
check = doctor._cache_file_system(here / "cache")
print("doctor:", check.ok, check.needed, check.text.splitlines()[-1])
memory = Memory.create("saved", 64 * MIB)
os.pwrite(memory.fd, b"data" * 1024, 32 * MIB)
with (here / "ram").open("xb") as target:
    copy_data(memory.fd, target.fileno())
print("saved:", (here / "ram").stat().st_blocks * 512)
fork = Memory.create("fork", 0, here / "ram")
print("copied:", os.fstat(fork.fd).st_blocks * 512, os.fstat(fork.fd).st_size == 64 * MIB)
print("same:", os.pread(fork.fd, 4096, 32 * MIB) == b"data" * 1024)
StateCache(here / "states").lease("live", {}, KEY, Builder(), say=print).close()
"""


def test_saved_memory_keeps_its_holes_on_a_file_system_that_reports_none(tmp_path: Path) -> None:
    """On ramfs, whose SEEK_DATA calls everything data, like that of many FUSE file systems."""
    output = output_on("ramfs", tmp_path, NO_HOLES)
    lines = {name: text for name, _, text in (line.partition(": ") for line in output.splitlines())}
    assert "does not report holes" in lines["lacks"]
    assert lines["saved"] == "4096"
    # In blocks of 64 KiB; not the whole file.
    assert lines["copied"] == f"{64 * 1024} True"
    assert lines["same"] == "True"
    assert lines["doctor"].startswith("False False put the cache on a local disk")
    assert f"the file system of {tmp_path / 'states'} does not report holes" in output


def _lease(root: Path, log: Path, gate: object) -> None:
    def build(folder: Path) -> Snapshot:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)
        return saved(folder)

    gate.wait()  # type: ignore[attr-defined]
    StateCache(root).lease("live", {}, KEY, build).close()


def test_many_processes_build_a_state_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    processes = [
        context.Process(target=_lease, args=(tmp_path / "states", tmp_path / "log", gate))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def left_over(cache: StateCache) -> list[str]:
    """Return the files and folders in a cache that belong to no state."""
    entries = {path.name for path in (cache.root / "entries").iterdir()}
    locks = [path for path in (cache.root / "locks").iterdir() if path.stem not in entries]
    return [str(path) for path in [*locks, *(cache.root / "tmp").iterdir()]]


@pytest.mark.parametrize("action", ["build", "discard", "collect"])
def test_kill_9_at_every_moment(tmp_path: Path, action: str) -> None:
    """A process that is killed before any change of a file loses no whole state; gc removes the rest."""
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
                statuses = {entry.id: entry.status for entry in cache.list()}
                half = {"damaged"} if action == "discard" else set()
                assert set(statuses.values()) <= {"ready", "in use", "interrupted"} | half
                whole = {path.name for path in (cache.root / "entries").iterdir()} - {
                    name for name, status in statuses.items() if status == "damaged"
                }
                cache.gc()
                now = {entry.id for entry in cache.list() if entry.status in ("ready", "in use")}
                assert now == whole, "gc removed a whole state"
                assert used.entry in now
                assert left_over(cache) == []
            with cache.lease("live", {}, KEY, Builder()) as lease:
                assert lease.snapshot.faults() == []
            if survived:
                break
    assert moment > 10, "the audit hook saw no changes"


def test_a_copy_has_the_holes_of_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("w+b") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"data" * 1024)
    with source.open("rb") as input_, target.open("w+b") as output:
        copy_data(input_.fileno(), output.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < MIB


def test_the_disks_of_a_fork_are_overlays_on_the_saved_ones(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "data.qcow2").touch()
    spec = MachineSpec(
        "one",
        "x86_64",
        Firmware(FirmwareKind.BIOS),
        disks=(Disk("data", size=MIB), Disk("seed", base=Path("/seed"), readonly=True)),
    )
    fork = Snapshot(tmp_path, spec, "pc-q35-10.0", "tcg", "max", "10", 0.0).fork_spec("two")
    assert fork.name == "two"
    assert fork.disks[0].base == tmp_path / "disks" / "data.qcow2"
    assert fork.disks[0].guest_serial == spec.disks[0].guest_serial
    assert fork.disks[1] == spec.disks[1]
    assert fork.mac(fork.nics[0]) == spec.mac(spec.nics[0])


def test_a_write_to_a_large_file_damages_the_state(cache: StateCache) -> None:
    with cache.lease("live", {}, KEY, Builder(SMALL + 4096)) as lease:
        assert lease.snapshot.faults() == []
        write_into_ram(lease.snapshot.folder)
        assert "was changed after it had been saved" in lease.snapshot.faults()[0]


def test_the_budget_removes_a_child_before_its_parent(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "states")
    with cache.lease("live", {}, KEY, Builder(MIB)) as parent:
        cache.lease("installed", {}, "c" * 64, Builder(MIB), parent=parent.entry).close()
        os.utime(parent.snapshot.folder / "state.json", (1, 1))
    StateCache(tmp_path / "states", budget=MIB + MIB // 2).trim()
    assert [entry.manifest.name for entry in cache.list() if entry.manifest] == ["live"]
