"""Groups: the order in which machines and segments are saved and forked, and what a folder holds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.cli import states as command
from harness.errors import QemuStartError, SnapshotError, StateError, StoreError, UsageError
from harness.network import SegmentState
from harness.spec import MIB, Firmware, FirmwareKind, MachineSpec, Nic
from harness.states import Group, GroupState, Snapshot, StateCache, restore_group, save_group, state
from harness.states.group import FORMAT, Fork
from harness.states.manifest import FORMAT as STATE_FORMAT
from harness.states.save import Save
from harness.states.together import Together

KEY = "k" * 64
FRAME = SegmentState({"ports": {"a": None}, "switch": {"seed": 1}}, b"a frame on its way")


class FakeSave:
    """The steps of saving a machine, which note what they do."""

    def __init__(self, machine: FakeMachine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder

    def stop(self) -> Callable[[], object]:
        self.machine.note("stop is sent")
        return lambda: self.machine.note("stands still")

    def write(self) -> None:
        self.machine.note("write")
        self.folder.mkdir(parents=True)
        (self.folder / "ram").write_bytes(b"r" * 4096)
        if self.machine.fault is not None:
            raise self.machine.fault

    def finish(self) -> Snapshot:
        self.machine.note("finish")
        spec = MachineSpec(
            self.machine.name,
            "x86_64",
            Firmware(FirmwareKind.BIOS),
            memory=32 * MIB,
            nics=(Nic.on("lan"),),
        )
        return Snapshot(self.folder, spec, "pc-q35-10.0", "tcg", "max", "10.0.2", 1.0).write()


class FakeMachine:
    def __init__(self, name: str, log: list[str], fault: Exception | None = None) -> None:
        self.name = name
        self.log = log
        self.fault = fault

    def note(self, what: str) -> None:
        self.log.append(f"{self.name}: {what}")

    @contextlib.contextmanager
    def saving(
        self, folder: Path, *, final: bool = False, inside: Path | None = None
    ) -> Iterator[Save]:
        del final, inside
        try:
            yield FakeSave(self, folder)
        finally:
            self.note("runs on")


class FakeSegment:
    name = "lan"

    def __init__(self, log: list[str]) -> None:
        self.log = log

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        self.log.append("lan: pause")
        try:
            yield
        finally:
            self.log.append("lan: resume")

    def save(self) -> SegmentState:
        self.log.append("lan: save")
        return FRAME


def save(folder: Path, log: list[str] | None = None, fault: Exception | None = None) -> Group:
    log = log if log is not None else []
    machines = [FakeMachine("a", log), FakeMachine("b", log, fault)]
    return save_group(machines, [FakeSegment(log)], folder)


# --- saving ---------------------------------------------------------------------------------------


def test_all_stop_at_one_moment_and_none_ends_before_all_are_saved(tmp_path: Path) -> None:
    log: list[str] = []
    group = save(tmp_path / "saved", log)
    assert log[:6] == [
        "lan: pause",
        "a: stop is sent",
        "b: stop is sent",
        "a: stands still",
        "b: stands still",
        "lan: save",
    ]
    assert sorted(log[6:8]) == ["a: write", "b: write"]
    assert sorted(log[8:10]) == ["a: finish", "b: finish"]
    assert sorted(log[10:12]) == ["a: runs on", "b: runs on"]
    assert log[12:] == ["lan: resume"]
    assert group.machines == ("a", "b")
    assert Group.read(tmp_path / "saved") == group
    assert group.faults() == []


def test_a_machine_that_cannot_be_saved_leaves_nothing_and_ends_none(tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(SnapshotError, match="gizmo"):
        save(tmp_path / "saved", log, SnapshotError("gizmo"))
    assert not [line for line in log if "finish" in line]
    assert {"a: runs on", "b: runs on", "lan: resume"} <= set(log)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine").touch()
    with pytest.raises(StoreError):
        save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["mine"]


def test_bad_groups_are_refused_before_a_machine_is_touched(tmp_path: Path) -> None:
    log: list[str] = []
    twice = [FakeMachine("a", log), FakeMachine("a", log)]
    with pytest.raises(UsageError, match="two machines of a group have one name: a"):
        save_group(twice, [], tmp_path / "saved")
    with pytest.raises(UsageError, match="two segments of a group have one name: lan"):
        save_group(twice[:1], [FakeSegment(log), FakeSegment(log)], tmp_path / "saved")
    with pytest.raises(UsageError, match="one machine at least"):
        save_group([], [], tmp_path / "saved")
    assert log == []


# --- the folder -----------------------------------------------------------------------------------


def lose(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def change(path: str) -> Callable[[Path], None]:
    """Change a byte, and neither the size nor the time."""

    def damage(folder: Path) -> None:
        target = folder / path
        status = target.stat()
        target.chmod(0o600)
        content = target.read_bytes()
        target.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lose("group.json"),
        lose("machines/a"),
        lose("machines/b/snapshot.json"),
        lose("machines/b/ram"),
        lose("segments/lan"),
        lose("segments/lan/segment.frames"),
        change("group.json"),
        change("machines/a/ram"),
        change("machines/a/snapshot.json"),
        change("segments/lan/segment.json"),
        change("segments/lan/segment.frames"),
    ],
)
def test_a_state_with_a_damaged_part_is_built_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = StateCache(tmp_path / "states")
    with cache.lease("cluster", {}, KEY, save) as lease:
        assert lease.group.segments["lan"] == FRAME
        folder = lease.folder
    damage(folder)
    (entry,) = cache.list()
    assert entry.status == "damaged"
    assert entry.why
    lines: list[str] = []
    with cache.lease("cluster", {}, KEY, save, say=lines.append) as lease:
        assert lease.group.faults() == []
    assert any("is damaged; rebuilding it" in line for line in lines)


def test_a_group_of_another_version_is_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FORMAT in STATE_FORMAT
    cache = StateCache(tmp_path / "states")
    with monkeypatch.context() as other:
        other.setattr("harness.states.group.FORMAT", "99.another")
        other.setattr("harness.states.manifest.FORMAT", "99.another")
        cache.lease("cluster", {}, KEY, save).close()
    (entry,) = cache.list()
    assert entry.status == "foreign"
    with pytest.raises(StateError, match="of another version of Harness"):
        Group.read(entry.path)


# --- as a state -----------------------------------------------------------------------------------


def test_a_state_of_a_cluster_is_lent_listed_and_removed_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = StateCache(tmp_path / "states")
    with cache.lease("cluster", {"x": "y"}, KEY, save) as lease:
        assert lease.manifest.machines == ("a", "b")
        assert sorted(lease.group.specs()) == ["a", "b"]
        with pytest.raises(UsageError, match="one of a cluster, of 2 machines"):
            _ = lease.snapshot
        assert not cache.remove(lease.entry)
        cache.discard(lease)
    cache.lease("cluster", {"x": "y"}, KEY, save).close()
    with cache.lease("single", {}, "s" * 64, one) as lease:
        assert lease.snapshot.spec.name == "a"
        with pytest.raises(UsageError, match="one of a single machine"):
            _ = lease.group

    def run(*words: str) -> str:
        import argparse

        parser = argparse.ArgumentParser()
        command.configure(parser)
        options = parser.parse_args(words)
        options.verb_handler(options, cache)
        return capsys.readouterr().out

    listed = {each["name"]: each for each in json.loads(run("list", "--json"))["states"]}
    assert (listed["cluster"]["machines"], listed["single"]["machines"]) == (2, 1)
    assert listed["cluster"]["bytes"] >= 2 * 4096
    lines = {line.split("-")[0]: line.split() for line in run("list").splitlines()}
    assert "2" in lines["cluster"]
    assert "machines: a, b" in run("explain", "cluster")
    assert cache.gc(everything=True) > 0
    assert cache.list() == []


def one(folder: Path) -> Snapshot:
    steps = FakeSave(FakeMachine("a", []), folder)
    steps.write()
    return steps.finish()


def test_a_state_of_a_cluster_is_declared_by_its_number() -> None:
    @state
    def member(lab: Any) -> None: ...

    @state(parent=member, machines=3)
    def three(lab: Any, cluster: Any) -> None: ...

    assert isinstance(three, GroupState)
    assert (three.machines, member.machines) == (3, 1)
    assert three.chain == (member, three)
    with pytest.raises(UsageError, match="three is the state of a cluster") as caught:
        state(parent=three)
    assert caught.value.hint == "@state(parent=..., machines=3)"
    with pytest.raises(UsageError, match="one machine at least, not 0"):
        state(machines=0)


# --- forks ----------------------------------------------------------------------------------------


class Launched:
    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class Started:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def resume(self) -> None:
        self.log.append("resume")

    def close(self) -> None:
        self.log.append("close")


class Forks:
    """Launches the members of a group."""

    def __init__(self, failing: str = "", at: str = "") -> None:
        self.log: list[str] = []
        self.launched: dict[str, Launched] = {}
        self.clocks: set[float] = set()
        self._failing = failing
        self._at = at
        self._late = threading.Event()

    def launch(
        self,
        saved: Snapshot,
        spec: MachineSpec,
        segments: Mapping[str, Started],
        together: Together,
    ) -> Launched:
        assert list(segments) == ["lan"]
        assert spec.mac(spec.nics[0]) == saved.spec.mac(saved.spec.nics[0])
        self.fail(spec.name, "load")
        if self._at == "alone":
            return self.launched.setdefault(spec.name, Launched(spec.name))
        self.log.append("loaded")
        with together.starting():
            self.fail(spec.name, "start")
            self.log.append("runs")
        self.clocks.add(together.now())
        self.fail(spec.name, "differ")
        return self.launched.setdefault(spec.name, Launched(spec.name))

    def fail(self, name: str, at: str) -> None:
        if (name, at) == (self._failing, self._at):
            raise QemuStartError(f"{name} does not {at}")

    def start_segment(self, name: str, segment: SegmentState) -> Started:
        assert (name, segment) == ("lan", FRAME)
        return Started(self.log)

    def fork(self, group: Group) -> Fork[Launched, Started]:
        return restore_group(group, launch=self.launch, start_segment=self.start_segment)


def test_members_run_together_and_then_the_segment_moves(tmp_path: Path) -> None:
    forks = Forks()
    fork = forks.fork(save(tmp_path / "saved"))
    assert list(fork.machines) == ["a", "b"]
    assert forks.log == ["loaded", "loaded", "runs", "runs", "resume"]
    assert len(forks.clocks) == 1


@pytest.mark.parametrize("failing", ["a", "b"])
@pytest.mark.parametrize("at", ["load", "start", "differ"])
def test_a_member_that_does_not_start_ends_all(tmp_path: Path, failing: str, at: str) -> None:
    forks = Forks(failing, at)
    with pytest.raises(QemuStartError, match=f"{failing} does not {at}"):
        forks.fork(save(tmp_path / "saved"))
    assert all(machine.stopped for machine in forks.launched.values())
    assert forks.log[-1] == "close"


def test_a_member_that_does_not_wait_for_the_others_is_refused(tmp_path: Path) -> None:
    forks = Forks(at="alone")
    with pytest.raises(UsageError, match=r"Setup\.together"):
        forks.fork(save(tmp_path / "saved"))
    assert all(machine.stopped for machine in forks.launched.values())


def test_a_damaged_segment_is_not_forked(tmp_path: Path) -> None:
    group = save(tmp_path / "saved")
    change("segments/lan/segment.frames")(group.folder)
    forks = Forks()
    with pytest.raises(StateError, match="damaged"):
        forks.fork(group)
    assert forks.log == []


def test_clocks_are_set_with_one_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves, two machines whose clocks are set at 0.4 and 0.6 s would be a second apart."""
    now = 1000.4
    monkeypatch.setattr(time, "time", lambda: now)
    together = Together(1, lambda: None)
    with together.starting():
        pass
    times = {}
    for later in (0.0, 0.2, 0.4, 0.6, 2.0):
        now = 1000.4 + later
        times[later] = together.now()
    assert times == {0.0: 1000, 0.2: 1000, 0.4: 1000, 0.6: 1001, 2.0: 1002}
