"""Saving and forking the micro guest."""

from __future__ import annotations

import hashlib
import itertools
import json
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

from harness import Lab
from harness import arch as arches
from harness.errors import CommandError, SnapshotError, UsageError
from harness.machine import Machine
from harness.profiles.micro import Micro
from harness.spec import MIB, Disk, Nic, parse_size
from harness.states import Snapshot, State, StateCache, state
from harness.states.manifest import StateManifest, entry_id
from tests.moments import Victim

ROOT = Path(__file__).resolve().parents[2]

KEY = "k" * 64

DRAWS = "dd if=/dev/urandom bs=16 count=64 2>/dev/null | od -An -v -tx1"
"""Prints 64 draws, a line each."""


@state
def ready(lab: Lab) -> Machine:
    machine = lab.boot("micro", disks=[Disk("data", size=8 * MIB)])
    machine.os.login()
    machine.ssh.connect()
    machine.console.run("echo a result that the guest keeps")
    machine.succeed("echo from the parent | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    return machine


@state
def drawn(lab: Lab) -> Machine:
    """A machine whose kernel would not reseed its random pool by itself for a while."""
    machine = lab.boot("micro", saveable=True)
    machine.os.login()
    if not arches.of(machine.spec.arch).has_vmgenid:
        machine.console.run(machine.os.reseed("0" * 32), check=True)
    return machine


@state
def timed(lab: Lab) -> Machine:
    """A machine in which a timer runs."""
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.run(
        "cat /proc/uptime > /tmp/before; (sleep 10; cat /proc/uptime > /tmp/after) > /dev/null 2>&1 &"
    )
    return machine


@state(parent=ready)
def computing(lab: Lab, machine: Machine) -> Machine:
    """A machine that has something to compute for a while, as one behind its login prompt has."""
    machine.console.run(
        "(read -r now rest < /proc/uptime; end=$((${now%.*} + 4));"
        " while [ ${now%.*} -lt $end ]; do read -r now rest < /proc/uptime; done;"
        " touch /tmp/computed) > /dev/null 2>&1 &"
    )
    return machine


@state(parent=ready)
def changed(lab: Lab, machine: Machine) -> Machine:
    machine.succeed("echo from the child | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    return machine


@state(parent=ready)
def moved(lab: Lab, machine: Machine) -> Machine:
    """Boot another machine with the disk of the first: an overlay on an overlay on a saved disk."""
    machine.succeed("echo from between | dd of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null")
    machine.shutdown()
    file = machine.disk("data")
    other = lab.boot("micro", disks=[Disk("data", base=file.path, format=file.format)])
    other.os.login()
    other.succeed("echo from above | dd of=/dev/vda bs=1M seek=6 conv=fsync 2>/dev/null")
    return other


@state
def at_the_login(lab: Lab) -> Machine:
    machine = lab.boot("micro")
    machine.console.expect("login: ")
    return machine


@state
def powered_off(lab: Lab) -> Machine:
    """A machine that QEMU cannot save: its monitor reports a device that forbids it."""
    machine = lab.boot("micro", disks=[Disk("data", size=8 * MIB)])
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
def out_of_reach(lab: Lab) -> Machine:
    BUILDS.append(1)
    machine = lab.boot("micro")
    machine.os.login()
    machine.succeed("false")
    return machine


def test_a_state_whose_steps_fail_is_built_once_in_a_run(lab: Lab) -> None:
    for _ in range(2):
        with pytest.raises(CommandError, match="'false' ended with status 1") as caught:
            lab.fork(out_of_reach)
        assert "while the state out_of_reach was built" in "".join(caught.value.__notes__)
    assert BUILDS == [1]


def mark(machine: Machine) -> tuple[str, str]:
    """Return the marks in the memory and on the disk of a guest."""
    memory, disk = machine.console.run("cat /tmp/mark; head -n 1 /dev/vda").stdout.splitlines()[:2]
    return memory, disk


def another_run(states: StateCache, folder: Path) -> Lab:
    """Return the lab of another run with a cache of states; it knows no state of this run."""
    other = Lab("micro", images=[ROOT / "images"], evidence=folder / "runs")
    other._parts.states = states
    return other


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Lab]:
    """Yield a lab with a cache of its own, whose states a test can damage."""
    with another_run(StateCache(tmp_path / "states"), tmp_path) as lab:
        yield lab


@pytest.fixture(params=arches.ARCHES)
def each(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Lab]:
    """Yield a lab for the guests of each architecture."""
    if request.param == lab.image.arch:
        yield lab
        return
    with Lab("micro", arch=request.param, evidence=lab.folder / request.param) as other:
        yield other


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "state.json"
    }


def test_a_fork_resumes_from_the_saved_machine(each: Lab) -> None:
    machine = each.fork(ready)
    assert mark(machine) == ("from the parent", "from the parent")
    assert machine.ssh.run("cat /tmp/mark").stdout == "from the parent\n"
    assert machine.ssh.host_key == each.state(ready).snapshot.host_key
    assert "entries/ready-" in (machine.evidence / "origin.json").read_text()
    names = [step.name for step in machine.timeline.steps]
    assert "fork" in names


def test_forks_do_not_see_each_other(each: Lab) -> None:
    saved = each.state(ready).snapshot.folder
    before = digests(saved)
    first, second = each.fork(ready), each.fork(ready)
    first.succeed("echo of first | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    assert mark(first) == ("of first", "of first")
    assert mark(second) == ("from the parent", "from the parent")
    assert first.port(22) != second.port(22)
    assert mark(each.fork(ready)) == ("from the parent", "from the parent")
    assert digests(saved) == before


def test_forks_have_the_time(each: Lab) -> None:
    began = time.time()
    first, second = each.fork(ready), each.fork(ready)
    for machine in (first, second):
        clock = int(machine.console.run("date +%s").stdout)
        assert began - 1 <= clock <= time.time() + 1  # it was set to the second
    assert second.ssh.run("cat /sys/class/net/eth0/carrier").stdout == "1\n"


def test_timers_and_the_uptime_go_on(each: Lab) -> None:
    machine = each.fork(timed)
    assert machine.console.run("[ -e /tmp/after ]").status, (
        "the timer ended before the machine was saved"
    )
    machine.console.run("until [ -s /tmp/after ]; do sleep 1; done", check=True)
    before, after = (
        float(machine.console.run(f"cut -d ' ' -f 1 /tmp/{name}").stdout)
        for name in ("before", "after")
    )
    assert before + 10 <= after <= float(machine.console.run("cat /proc/uptime").stdout.split()[0])


def draw(machine: Machine) -> set[str]:
    """Return the first draws from the random pool that a test can have a fork make."""
    draws = set(machine.console.run(DRAWS).stdout.splitlines())
    assert len(draws) == 64
    return draws


def test_no_fork_draws_the_random_numbers_of_another(each: Lab) -> None:
    draws: set[str] = set()
    for number in range(1, 4):
        draws |= draw(each.fork(drawn))
        assert len(draws) == 64 * number


def test_a_fork_of_a_running_machine_draws_its_own_random_numbers(each: Lab) -> None:
    machine = each.boot("micro", saveable=True)
    machine.os.login()
    with machine.fork() as other:
        assert draw(machine).isdisjoint(draw(other))


def test_a_fork_says_what_is_still_as_in_the_origin(
    each: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Micro, "reseed", lambda self, seed: "")
    for point in (at_the_login, ready):
        each.fork(point)
    unattended, attended = (step.data for step in each.timeline.steps if step.name == "fork")
    nobody = "that of the origin: no user is logged in"
    assert unattended["clock"] == nobody
    assert "clock" not in attended
    if arches.of(each.image.arch).has_vmgenid:
        assert "random pool" not in {*unattended, *attended}
    else:
        assert unattended["random pool"] == nobody
        assert "the profile has no command that reseeds" in attended["random pool"]


@state
def on_two_networks(lab: Lab) -> Machine:
    machine = lab.boot("micro", nics=(Nic(), Nic("meet", forward=())))
    machine.os.login()
    return machine


def test_mac_addresses_differ_where_forks_may_meet(each: Lab) -> None:
    """An interface with forwarded ports keeps its saved MAC address, which has the DHCP lease."""
    forks = [each.fork(on_two_networks), each.fork(on_two_networks)]
    outputs = [fork.console.run("cat /sys/class/net/eth[01]/address").stdout for fork in forks]
    addresses = [output.split() for output in outputs]
    assert addresses == [[fork.spec.mac(nic) for nic in fork.spec.nics] for fork in forks]
    assert addresses[0][0] == addresses[1][0]
    assert addresses[0][1] != addresses[1][1]


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    assert process.stdout is not None
    output = b""
    while text not in output:
        part = os.read(process.stdout.fileno(), 4096)
        assert part, output
        output += part
    return output


def test_the_script_of_a_fork_runs_by_hand(each: Lab) -> None:
    machine = each.fork(ready)
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
        read_until(by_hand, b"the fork runs")
        by_hand.stdin.write(b"q 0 ..\n cat /tmp/mark; echo by''hand\n")
        by_hand.stdin.flush()
        output = read_until(by_hand, b"byhand")
        assert b"from the parent" in output
    finally:
        watchdog.cancel()
        by_hand.kill()
        by_hand.wait()
        by_hand.stdin.close()
        by_hand.stdout.close()


def test_a_state_is_saved_when_its_guest_rests(each: Lab) -> None:
    assert each.fork(computing).console.run("ls /tmp").stdout.split().count("computed") == 1


def test_a_fork_reboots(each: Lab) -> None:
    machine = each.fork(ready)
    before = machine.boot_id
    machine.reboot()
    assert machine.boot_id != before
    assert machine.succeed("head -n 1 /dev/vda") == "from the parent\n"


def test_a_state_builds_on_its_parent(each: Lab) -> None:
    assert mark(each.fork(changed)) == ("from the child", "from the child")
    assert mark(each.fork(ready)) == ("from the parent", "from the parent")
    parent, child = each.state(ready), each.state(changed)
    assert child.manifest.parent == parent.entry


def test_a_disk_that_moved_to_another_machine_keeps_its_content(each: Lab) -> None:
    machine = each.fork(moved)
    for place, content in ((0, "from the parent"), (4, "from between"), (6, "from above")):
        output = machine.console.run(f"dd if=/dev/vda bs=1M skip={place} count=1 2>&- | head -n 1")
        assert output.stdout == content + "\n"
    machine.stop()
    bases = [name for name, _ in each.state(moved).snapshot.bases if "disks" in name]
    assert bases == [str(each.state(ready).snapshot.folder / "disks" / "data.qcow2")]


def test_a_fork_stands_at_the_login_prompt(lab: Lab) -> None:
    machine = lab.fork(at_the_login)
    machine.os.login()
    assert machine.console.run("id -un").stdout == "root\n"


def test_a_state_that_cannot_be_saved_running_is_cold(lab: Lab) -> None:
    machine = lab.fork(powered_off)
    assert "gizmo" in lab.state(powered_off).snapshot.cold
    assert machine.succeed("head -n 1 /dev/vda") == "cold\n"
    assert machine.console.run("echo logged in").stdout == "logged in\n"


def test_a_machine_forks_while_it_runs(each: Lab, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not started with saveable=True"):
        each.fork(ready).save(tmp_path / "nowhere")
    base = tmp_path / "disk.raw"
    base.write_bytes(bytes(8 * MIB))
    machine = each.boot("micro", saveable=True, disks=[Disk("data", base=base)])
    machine.os.login()
    machine.succeed("echo before | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
    with machine.fork() as other:
        machine.succeed("echo after | tee /tmp/mark | dd of=/dev/vda conv=fsync 2>/dev/null")
        assert mark(other) == ("before", "before")
        assert mark(machine) == ("after", "after")
        saved = Snapshot.read(
            Path(json.loads((other.evidence / "origin.json").read_text())["folder"])
        )
        assert str(base) in dict(saved.bases), "the fork has a copy of the disk's base"
        other.succeed("echo other > /tmp/mark")
        assert mark(machine) == ("after", "after")


def test_a_disk_written_in_place_cannot_be_saved(lab: Lab, tmp_path: Path) -> None:
    base = tmp_path / "disk.raw"
    base.write_bytes(bytes(MIB))
    machine = lab.boot("micro", saveable=True, disks=[Disk("own", base=base, in_place=True)])
    with pytest.raises(SnapshotError, match="its disk own is written in place"):
        machine.save(tmp_path / "saved")
    machine.os.login()


@pytest.mark.parametrize("file", ["ram", "devices", "snapshot.json", "state.json"])
def test_a_damaged_state_is_rebuilt(own: Lab, tmp_path: Path, file: str) -> None:
    lease = own.state(at_the_login)
    path = lease.snapshot.folder / file
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)
    assert own.states.fault(lease.entry)
    # In another run, while this one has a lease, damage does not fail the test.
    with another_run(own.states, tmp_path) as other:
        other.fork(at_the_login).os.login()
        assert other.state(at_the_login).manifest.created > lease.manifest.created
    assert own.states.fault(lease.entry) is None


def test_a_state_that_qemu_refuses_is_rebuilt(own: Lab, tmp_path: Path) -> None:
    lease = own.state(at_the_login)
    path = lease.snapshot.devices
    path.chmod(0o600)
    path.write_bytes(b"nonsense" * 1000)
    for saved in (p for p in lease.snapshot.folder.iterdir() if p.is_file()):
        saved.chmod(0o600)
    manifest = (lease.snapshot.folder / "state.json").read_text()
    (lease.snapshot.folder / "state.json").unlink()
    replace(lease.snapshot, files=()).write()
    (lease.snapshot.folder / "state.json").write_text(manifest)
    assert own.states.fault(lease.entry) is None
    with another_run(own.states, tmp_path) as other:
        other.fork(at_the_login).os.login()
        assert other.state(at_the_login).manifest.created > lease.manifest.created


def victim(
    action: str, saved: Path, evidence: Path, root: Path, moment: int = 0
) -> tuple[str, int]:
    """Return the output of the victim and its exit status."""
    command = [sys.executable, "-m", "tests.integration.states_victim", action]
    command += [str(saved), str(evidence), str(root), str(moment)]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return process.stdout, process.returncode


def qemus_of(evidence: Path) -> list[int]:
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(evidence).encode() in (entry / "cmdline").read_bytes():
                pids.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in pids if pid != os.getpid()]


def wait_gone(pids: list[int]) -> None:
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], 30)[0], f"process {pid} still runs"
        os.close(fd)


@pytest.mark.parametrize(("action", "moments"), [("save", 11), ("restore", 10)])
def test_kill_9_at_many_moments(lab: Lab, tmp_path: Path, action: str, moments: int) -> None:
    """Kill a process before the first and the last change of a file or command, and some between."""
    lab.fork(ready).stop()
    saved = lab.state(ready).snapshot.folder
    before = digests(saved)
    output, _ = victim(action, saved, tmp_path / "evidence", tmp_path / "whole")
    assert output.startswith("done "), output
    last = int(output.split()[1])
    assert last > moments, output
    published = 0
    for step in range(moments):
        moment = 1 + step * (last - 1) // (moments - 1)
        root, evidence = tmp_path / f"{moment}", tmp_path / f"evidence-{moment}"
        output, status = victim(action, saved, evidence, root, moment)
        assert status == -signal.SIGKILL, f"at {moment} of {last}: {output}"
        wait_gone(qemus_of(evidence))
        # A state is whole, or does not exist.
        cache = StateCache(root)
        entries = [entry for entry in cache.list() if entry.status != "interrupted"]
        assert {entry.status for entry in entries} <= {"ready"}
        cache.gc()
        assert [entry.id for entry in cache.list()] == [entry.id for entry in entries]
        published += len(entries)
        if entries and published == 1:
            answers(lab, entries[0].path)
        assert left_over(root) == []
    assert bool(published) == (action == "save"), "no moment was after the state was published"
    assert digests(saved) == before
    assert mark(lab.fork(ready)) == ("from the parent", "from the parent")


def answers(lab: Lab, folder: Path) -> None:
    """Fork a saved machine and run a command on its console."""
    machine = lab.fork(Snapshot.read(folder), working_set=0)
    if not machine.console.logged_in:
        machine.os.login()
    assert machine.console.run("echo it answers").stdout == "it answers\n"
    machine.stop()


def left_over(root: Path) -> list[Path]:
    """Return the files and folders in a cache that belong to no state."""
    if not root.exists():
        return []
    entries = {path.name for path in (root / "entries").iterdir()}
    locks = [path for path in (root / "locks").iterdir() if path.stem not in entries]
    return [*locks, *(root / "tmp").iterdir()]


def link(source: str, target: str) -> None:
    """Link a file of a state; copy the one that is written to later."""
    if Path(source).name == "state.json":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def caches(lab: Lab, folder: Path) -> StateCache:
    """Return a cache of saved machines with every kind of garbage."""
    cache = StateCache(folder / "states")

    def copy(kind: State, name: str, where: str = "entries") -> Path:
        saved = lab.state(kind).snapshot.folder
        target = cache.root / where / entry_id(name, KEY)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--sparse=auto", saved, target], check=True)
        manifest = StateManifest.read(target)
        assert manifest is not None
        replace(manifest, name=name).write(target)
        return target

    copy(ready, "used")
    copy(at_the_login, "young")
    os.utime(copy(ready, "old") / "state.json", (2, 2))
    os.truncate(copy(at_the_login, "damaged") / "state.json", 10)
    copy(at_the_login, "interrupted", "tmp")
    # A build that is killed right after it has published its state leaves this folder.
    (cache.root / "tmp" / entry_id("young", KEY)).mkdir()
    return cache


def test_kill_9_at_every_moment_of_a_collection(lab: Lab, tmp_path: Path) -> None:
    """Kill ``harness states gc`` before each change that it makes to saved machines."""
    begin = caches(lab, tmp_path / "begin")
    damaged = entry_id("damaged", KEY)
    sizes = {e.manifest.name: e.bytes for e in begin.list() if e.manifest is not None}
    budget = f"{(sizes['used'] + sizes['young']) // MIB + 1}MiB"
    seen: set[frozenset[str]] = set()

    def never(folder: Path) -> Snapshot:
        raise AssertionError(f"{folder} is built again")

    with Victim("tests.integration.states_victim", "collect") as collector:
        for moment in itertools.count(1):
            folder = tmp_path / str(moment)
            shutil.copytree(begin.root, folder / "states", copy_function=link)
            cache = StateCache(folder / "states", budget=parse_size(budget))
            with cache.lease("used", {}, KEY, never) as used:
                # It would be the first to go if it were not in use.
                os.utime(used.snapshot.folder / "state.json", (1, 1))
                survived = collector.survives(moment, folder, budget)
                assert used.snapshot.faults() == []
                assert [e.id for e in cache.list() if e.status == "damaged"] in ([], [damaged])
                whole = {e.id: e for e in cache.list() if e.status in ("ready", "in use")}
                names = frozenset(e.manifest.name for e in whole.values() if e.manifest is not None)
                assert {"used", "young"} <= names <= {"used", "young", "old"}
                if names not in seen:
                    seen.add(names)
                    for entry in whole.values():
                        answers(lab, entry.path)
                if not survived:
                    cache.gc()
                assert left_over(cache.root) == []
                left = {entry.id for entry in cache.list()}
                assert left == {entry_id("used", KEY), entry_id("young", KEY)}
            shutil.rmtree(folder)
            if survived:
                break
    assert moment > 30, "the audit hook saw no changes"
    assert len(seen) == 2, "no moment lies between the removals of two states"


def test_forks_copy_the_ram_if_it_cannot_be_mapped(lab: Lab, tmp_path: Path) -> None:
    """The step that starts a fork says so."""
    lab.fork(ready).stop()
    saved = lab.state(ready).snapshot.folder
    output, status = victim("unmapped", saved, tmp_path / "evidence", tmp_path)
    assert status == 0, output
    assert output.startswith("from the parent\nfrom the parent\n")
    assert "a copy: the saved file cannot be mapped: No such device" in output
    assert f"mem-path={saved / 'ram'}" in (tmp_path / "evidence" / "qemu.sh").read_text()


def test_steps_and_forks_reach_the_same_state(lab: Lab) -> None:
    for start in (lab.fork, lab.reach):
        machine: Machine = start(changed)
        assert mark(machine) == ("from the child", "from the child")
        assert machine.succeed("uname -m").strip() == machine.spec.arch
        machine.fail("test -e /tmp/other")


def test_two_processes_build_a_state_once(lab: Lab, tmp_path: Path) -> None:
    suite = tmp_path / "test_it.py"
    suite.write_text(
        "from harness.states import state\n"
        "@state\n"
        "def point(lab):\n"
        f"    # {tmp_path} {time.time()}: makes a state that is in no cache\n"
        "    machine = lab.boot('micro')\n"
        "    machine.os.login()\n"
        "    return machine\n"
        "def test_it(lab):\n"
        "    assert lab.fork(point).console.run('echo hi').stdout == 'hi\\n'\n"
        "    print('built', lab.state(point).manifest.created)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rP"]
    command += [
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
    ]
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
    outputs = [run.communicate()[0] for run in runs]
    for entry in lab.states.list():
        if entry.manifest is not None and entry.manifest.name == "point":
            lab.states.remove(entry.id)
    assert [run.returncode for run in runs] == [0, 0], outputs
    lines = [line for output in outputs for line in output.splitlines()]
    assert len({line for line in lines if line.startswith("built ")}) == 1, outputs
    assert lines.count("building the state point") == 1
    assert sum("is building the state point; waiting" in output for output in outputs) == 1
