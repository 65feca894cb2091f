"""Saving and forking, on the micro guest."""

from __future__ import annotations

import hashlib
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.machines import Boot
from fixtures.states import ForkOf, States
from harness.errors import CommandError, SnapshotError, UsageError
from harness.machine import Machine
from harness.spec import MIB, Disk, Nic, parse_size
from harness.state import Snapshot, State, StateCache, state
from harness.state.cache import Record, entry_id
from tests.moments import Victim

ROOT = Path(__file__).resolve().parents[2]

KEY = "k" * 64

RANDOM = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid"


@state
def ready(boot: Boot) -> Machine:
    machine = boot("micro", disks=[Disk("data", size=8 * MIB)])
    machine.os.login()
    machine.ssh.connect()
    machine.console.run("echo a result that the guest keeps")
    machine.succeed("echo from the parent | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    return machine


@state(parent=ready)
def changed(boot: Boot, machine: Machine) -> Machine:
    machine.succeed("echo from the child | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    return machine


@state(parent=ready)
def moved(boot: Boot, machine: Machine) -> Machine:
    """Another machine with the disk of the first: an overlay on an overlay on a saved one."""
    machine.succeed("echo from between | dd of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null")
    machine.shutdown()
    file = machine.disk("data")
    other = boot("micro", disks=[Disk("data", base=file.path, format=file.format)])
    other.os.login()
    other.succeed("echo from above | dd of=/dev/vda bs=1M seek=6 conv=fsync 2>/dev/null")
    return other


@state
def at_the_login(boot: Boot) -> Machine:
    machine = boot("micro")
    machine.console.expect("login: ")
    return machine


@state
def powered_off(boot: Boot) -> Machine:
    """A machine that QEMU will not save: its monitor is told that something forbids it."""
    machine = boot("micro", disks=[Disk("data", size=8 * MIB)])
    machine.os.login()
    machine.succeed("echo cold | dd of=/dev/vda conv=fsync 2>/dev/null")
    execute = machine.qmp.execute

    def refusing(command: str, *arguments: object, **options: object) -> object:
        if command == "query-migrate":
            return {"blocked-reasons": ["device 'gizmo' is not migratable"]}
        return execute(command, *arguments, **options)  # type: ignore[arg-type]

    machine.qmp.execute = refusing  # type: ignore[method-assign]
    return machine


BUILDS: list[int] = []


@state
def out_of_reach(boot: Boot) -> Machine:
    BUILDS.append(1)
    machine = boot("micro")
    machine.os.login()
    machine.succeed("false")
    return machine


def test_a_state_that_the_image_fails_is_built_once(fork_of: ForkOf) -> None:
    for _ in range(2):
        with pytest.raises(CommandError, match="'false' ended with status 1") as caught:
            fork_of(out_of_reach)
        assert "while the state out_of_reach was built" in "".join(caught.value.__notes__)
    assert BUILDS == [1]


def mark(machine: Machine) -> tuple[str, str]:
    """Return what the memory and the disk of a guest say."""
    told = machine.console.run("cat /tmp/mark; head -n 1 /dev/vda").stdout.splitlines()
    return told[0], told[1]


def another_run(states: States) -> States:
    """Return states that know nothing of what this run has looked at, in the same cache."""
    other = States(states._told)
    other.cache = states.cache
    return other


@pytest.fixture
def own(states: States, tmp_path: Path) -> Iterator[States]:
    """States that a test may damage: no other worker has one of them in use."""
    alone = another_run(states)
    alone.cache = StateCache(tmp_path / "states")
    yield alone
    shutil.rmtree(tmp_path / "states")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "state.json"
    }


def test_a_fork_goes_on_from_its_parent(fork_of: ForkOf, states: States) -> None:
    machine = fork_of(ready)
    assert mark(machine) == ("from the parent", "from the parent")
    assert machine.ssh.run("cat /tmp/mark").stdout == "from the parent\n"
    assert machine.ssh.host_key == states.lease(ready).snapshot.host_key
    assert "entries/ready-" in (machine.evidence / "origin.json").read_text()
    names = [step.name for step in machine.timeline.steps]
    assert "fork" in names


def test_forks_are_alone(fork_of: ForkOf, states: States) -> None:
    saved = states.lease(ready).snapshot.folder
    before = digests(saved)
    one, two = fork_of(ready), fork_of(ready)
    one.succeed("echo of one | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    assert mark(one) == ("of one", "of one")
    assert mark(two) == ("from the parent", "from the parent")
    assert one.port(22) != two.port(22)
    assert mark(fork_of(ready)) == ("from the parent", "from the parent")
    assert digests(saved) == before


def test_forks_differ_where_they_must(fork_of: ForkOf) -> None:
    one, two = fork_of(ready), fork_of(ready)
    for machine in (one, two):
        told = int(machine.console.run("date +%s").stdout)
        assert abs(told - time.time()) < 5
    assert one.console.run(RANDOM).stdout != two.console.run(RANDOM).stdout
    assert two.ssh.run("echo there").stdout == "there\n"


@state
def on_two_networks(boot: Boot) -> Machine:
    machine = boot("micro", nics=(Nic(), Nic("meet", forward=())))
    machine.os.login()
    return machine


def test_addresses_differ_where_forks_may_meet(fork_of: ForkOf) -> None:
    """The host's own way in stays: its address was leased to the MAC address that was saved."""
    forks = [fork_of(on_two_networks), fork_of(on_two_networks)]
    told = [each.console.run("cat /sys/class/net/eth[01]/address").stdout for each in forks]
    addresses = [text.split() for text in told]
    assert addresses == [[each.spec.mac(nic) for nic in each.spec.nics] for each in forks]
    assert addresses[0][0] == addresses[1][0]
    assert addresses[0][1] != addresses[1][1]


def test_the_random_pool_is_another_before_the_first_command(fork_of: ForkOf) -> None:
    drawn = set()
    for _ in range(3):
        # The very first thing that a fork does, besides what Harness does to it.
        drawn.add(fork_of(ready).console.run(RANDOM).stdout)
    assert len(drawn) == 3


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    assert process.stdout is not None
    said = b""
    while wanted not in said:
        part = os.read(process.stdout.fileno(), 4096)
        assert part, said
        said += part
    return said


def test_a_person_runs_a_fork_by_hand(fork_of: ForkOf) -> None:
    machine = fork_of(ready)
    machine.stop()
    by_hand = subprocess.Popen(
        [machine.evidence / "qemu.sh", "--fresh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert by_hand.stdin is not None
    assert by_hand.stdout is not None
    watchdog = threading.Timer(30, by_hand.kill)
    watchdog.start()
    try:
        said = read_until(by_hand, b"the fork runs")
        by_hand.stdin.write(b"q 0 ..\n cat /tmp/mark; echo by''hand\n")
        by_hand.stdin.flush()
        said = read_until(by_hand, b"byhand")
        assert b"from the parent" in said
    finally:
        watchdog.cancel()
        by_hand.kill()
        by_hand.wait()
        by_hand.stdin.close()
        by_hand.stdout.close()


def test_a_fork_reboots(fork_of: ForkOf) -> None:
    machine = fork_of(ready)
    before = machine.boot_id
    machine.reboot()
    assert machine.boot_id != before
    assert machine.succeed("head -n 1 /dev/vda") == "from the parent\n"


def test_a_state_goes_on_from_another(fork_of: ForkOf, states: States) -> None:
    assert mark(fork_of(changed)) == ("from the child", "from the child")
    assert mark(fork_of(ready)) == ("from the parent", "from the parent")
    parent, child = states.lease(ready), states.lease(changed)
    assert child.record.parent == parent.entry


def test_a_disk_that_moved_to_another_machine_is_whole(fork_of: ForkOf, states: States) -> None:
    machine = fork_of(moved)
    for place, content in ((0, "from the parent"), (4, "from between"), (6, "from above")):
        said = machine.console.run(f"dd if=/dev/vda bs=1M skip={place} count=1 2>&- | head -n 1")
        assert said.stdout == content + "\n"
    machine.stop()
    bases = [name for name, _ in states.lease(moved).snapshot.bases if "disks" in name]
    assert bases == [str(states.lease(ready).snapshot.folder / "disks" / "data.qcow2")]


def test_a_fork_stands_at_the_login_prompt(fork_of: ForkOf) -> None:
    machine = fork_of(at_the_login)
    machine.os.login()
    assert machine.console.run("id -un").stdout == "root\n"


def test_a_state_that_cannot_be_saved_running_is_cold(fork_of: ForkOf, states: States) -> None:
    machine = fork_of(powered_off)
    assert "gizmo" in states.lease(powered_off).snapshot.cold
    assert machine.succeed("head -n 1 /dev/vda") == "cold\n"
    assert machine.console.run("echo logged in").stdout == "logged in\n"


def test_a_machine_forks_while_it_runs(boot: Boot, fork_of: ForkOf, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not started to be"):
        fork_of(ready).save(tmp_path / "nowhere")
    machine = boot("micro", saveable=True, disks=[Disk("data", size=8 * MIB)])
    machine.os.login()
    machine.succeed("echo before | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    with machine.fork() as other:
        machine.succeed("echo after | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
        assert mark(other) == ("before", "before")
        assert mark(machine) == ("after", "after")
        other.succeed("echo other > /tmp/mark")
        assert mark(machine) == ("after", "after")


def test_a_disk_written_in_place_cannot_be_saved(boot: Boot, tmp_path: Path) -> None:
    base = tmp_path / "disk.raw"
    base.write_bytes(bytes(MIB))
    machine = boot("micro", saveable=True, disks=[Disk("own", base=base, in_place=True)])
    with pytest.raises(SnapshotError, match="its disk own is written in place"):
        machine.save(tmp_path / "saved")
    machine.os.login()


@pytest.mark.parametrize("file", ["ram", "devices", "snapshot.json", "state.json"])
def test_what_is_damaged_is_built_anew(fork_of: ForkOf, own: States, file: str) -> None:
    lease = own.lease(at_the_login)
    path = lease.snapshot.folder / file
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)
    assert own.cache.fault(lease.entry)
    # Another run, while this one has a lease; what it finds wrong is no failure of its test.
    others = another_run(own)
    ForkOf(others, fork_of._boot, fresh=False)(at_the_login).os.login()
    assert others.lease(at_the_login).record.created > lease.record.created
    assert own.cache.fault(lease.entry) is None


def test_what_qemu_does_not_take_is_built_anew(fork_of: ForkOf, own: States) -> None:
    lease = own.lease(at_the_login)
    path = lease.snapshot.devices
    path.chmod(0o600)
    path.write_bytes(b"nonsense" * 1000)
    for other in (p for p in lease.snapshot.folder.iterdir() if p.is_file()):
        other.chmod(0o600)
    record = (lease.snapshot.folder / "state.json").read_text()
    (lease.snapshot.folder / "state.json").unlink()
    replace(lease.snapshot, files=()).write()
    (lease.snapshot.folder / "state.json").write_text(record)
    assert own.cache.fault(lease.entry) is None
    others = another_run(own)
    ForkOf(others, fork_of._boot, fresh=False)(at_the_login).os.login()
    assert others.lease(at_the_login).record.created > lease.record.created


def victim(
    action: str, saved: Path, evidence: Path, root: Path, moment: int = 0
) -> tuple[str, int]:
    """Return what the process said, and how it ended."""
    command = [sys.executable, "-m", "tests.integration.states_victim", action]
    command += [str(saved), str(evidence), str(root), str(moment)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout, done.returncode


def qemus_of(evidence: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(evidence).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_gone(pids: list[int]) -> None:
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], 30)[0], f"process {pid} is there still"
        os.close(fd)


@pytest.mark.parametrize(("action", "moments"), [("save", 11), ("restore", 10)])
def test_kill_9_at_many_moments(
    fork_of: ForkOf, states: States, tmp_path: Path, action: str, moments: int
) -> None:
    """Before a change of a file that it makes, or a command that it gives: the first, the last, and
    some between them."""
    fork_of(ready).stop()
    saved = states.lease(ready).snapshot.folder
    before = digests(saved)
    said, _ = victim(action, saved, tmp_path / "evidence", tmp_path / "whole")
    assert said.startswith("done "), said
    last = int(said.split()[1])
    assert last > moments, said
    published = 0
    for step in range(moments):
        moment = 1 + step * (last - 1) // (moments - 1)
        root, evidence = tmp_path / f"{moment}", tmp_path / f"evidence-{moment}"
        said, ended = victim(action, saved, evidence, root, moment)
        assert ended == -signal.SIGKILL, f"at {moment} of {last}: {said}"
        wait_gone(qemus_of(evidence))
        # A state is there and whole, or is not there.
        cache = StateCache(root)
        entries = [entry for entry in cache.list() if entry.status != "interrupted"]
        assert {entry.status for entry in entries} <= {"ready"}
        cache.gc()
        assert [entry.id for entry in cache.list()] == [entry.id for entry in entries]
        published += len(entries)
        if entries and published == 1:
            answers(fork_of, states, entries[0].path)
        assert left_over(root) == []
    assert bool(published) == (action == "save"), "no moment was after the state was published"
    assert digests(saved) == before
    assert mark(fork_of(ready)) == ("from the parent", "from the parent")


def answers(fork_of: ForkOf, states: States, folder: Path) -> None:
    """Let a saved machine go on, and see that it answers on its console."""
    machine = fork_of._boot.fork(Snapshot.read(folder), states.selection, working_set=0)
    if not machine.console.logged_in:
        machine.os.login()
    assert machine.console.run("echo it answers").stdout == "it answers\n"
    machine.stop()


def left_over(root: Path) -> list[Path]:
    """Return what lies in a cache and belongs to no state."""
    if not root.exists():
        return []
    entries = {path.name for path in (root / "entries").iterdir()}
    locks = [path for path in (root / "locks").iterdir() if path.stem not in entries]
    return [*locks, *(root / "tmp").iterdir()]


def link(source: str, target: str) -> None:
    """Copy a file of a state without its contents, but what is written to later."""
    if Path(source).name == "state.json":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def caches(states: States, folder: Path) -> StateCache:
    """Return a cache of saved machines that has everything that there is to collect."""
    cache = StateCache(folder / "states")

    def copy(kind: State, name: str, where: str = "entries") -> Path:
        saved = states.lease(kind).snapshot.folder
        target = cache.root / where / entry_id(name, KEY)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--sparse=auto", saved, target], check=True)
        record = Record.read(target)
        assert record is not None
        replace(record, name=name).write(target)
        return target

    copy(ready, "used")
    copy(at_the_login, "young")
    os.utime(copy(ready, "old") / "state.json", (2, 2))
    os.truncate(copy(at_the_login, "damaged") / "state.json", 10)
    copy(at_the_login, "interrupted", "tmp")
    # Of a build that was killed as soon as it had published its state.
    (cache.root / "tmp" / entry_id("young", KEY)).mkdir()
    return cache


def test_kill_9_at_every_moment_of_a_collection(
    fork_of: ForkOf, states: States, tmp_path: Path
) -> None:
    """``harness states gc`` on saved machines, killed before each change that it makes."""
    begin = caches(states, tmp_path / "begin")
    damaged = entry_id("damaged", KEY)
    sizes = {e.record.name: e.bytes for e in begin.list() if e.record is not None}
    budget = f"{(sizes['used'] + sizes['young']) // MIB + 1}MiB"
    seen: set[frozenset[str]] = set()

    def never(folder: Path) -> Snapshot:
        raise AssertionError(f"{folder} is built, and was there")

    with Victim("tests.integration.states_victim", "collect") as collector:
        for moment in itertools.count(1):
            folder = tmp_path / str(moment)
            shutil.copytree(begin.root, folder / "states", copy_function=link)
            cache = StateCache(folder / "states", budget=parse_size(budget))
            with cache.lease("used", {}, KEY, never) as used:
                # The least recently used of all, were it not in use.
                os.utime(used.snapshot.folder / "state.json", (1, 1))
                survived = collector.survives(moment, folder, budget)
                assert used.snapshot.faults() == []
                assert [e.id for e in cache.list() if e.status == "damaged"] in ([], [damaged])
                whole = {e.id: e for e in cache.list() if e.status in ("ready", "in use")}
                found = frozenset(e.record.name for e in whole.values() if e.record is not None)
                assert {"used", "young"} <= found <= {"used", "young", "old"}
                if found not in seen:
                    seen.add(found)
                    for entry in whole.values():
                        answers(fork_of, states, entry.path)
                if not survived:
                    cache.gc()
                assert left_over(cache.root) == []
                left = {entry.id for entry in cache.list()}
                assert left == {entry_id("used", KEY), entry_id("young", KEY)}
            shutil.rmtree(folder)
            if survived:
                break
    assert moment > 30, "the hook saw nothing"
    assert len(seen) == 2, "no moment was between what it removes"


def test_a_cache_that_maps_no_files(fork_of: ForkOf, states: States, tmp_path: Path) -> None:
    """Its forks have copies of the saved RAM, and say so."""
    fork_of(ready).stop()
    saved = states.lease(ready).snapshot.folder
    said, ended = victim("unmapped", saved, tmp_path / "evidence", tmp_path)
    assert ended == 0, said
    assert said.startswith("from the parent\nfrom the parent\n")
    assert "a copy: the saved file cannot be mapped: No such device" in said
    assert f"mem-path={saved / 'ram'}" in (tmp_path / "evidence" / "qemu.sh").read_text()


def test_a_scenario_ends_the_same_cold_and_forked(fork_of: ForkOf, states: States) -> None:
    fresh = ForkOf(states, fork_of._boot, fresh=True)
    for start in (fork_of, fresh):
        machine = start(changed)
        assert mark(machine) == ("from the child", "from the child")
        assert machine.succeed("uname -m").strip() == machine.spec.arch
        machine.fail("test -e /tmp/other")


def test_two_processes_build_a_state_once(states: States, tmp_path: Path) -> None:
    suite = tmp_path / "test_it.py"
    suite.write_text(
        "from harness.state import state\n"
        "@state\n"
        "def point(boot):\n"
        f"    # of {tmp_path} {time.time()}: a state that is in no cache\n"
        "    machine = boot('micro')\n"
        "    machine.os.login()\n"
        "    return machine\n"
        "def test_it(fork_of, states):\n"
        "    assert fork_of(point).console.run('echo hi').stdout == 'hi\\n'\n"
        "    print('made', states.lease(point).record.created)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rP"]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "fixtures.plugin"]
    command += ["--image", "micro", "--evidence", str(tmp_path / "runs"), str(suite)]
    runs = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [run.communicate()[0] for run in runs]
    for entry in states.cache.list():
        if entry.record is not None and entry.record.name == "point":
            states.cache.remove(entry.id)
    assert [run.returncode for run in runs] == [0, 0], said
    made = {line for text in said for line in text.splitlines() if line.startswith("made ")}
    assert len(made) == 1, said
    assert sum(text.splitlines().count("building the state point") for text in said) == 1
    assert sum("is building the state point; waiting" in text for text in said) == 1
