"""Bundles of real guests: machines that failed in one folder run on in another one."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.project import Finished, Project
from harness.evidence.bundle import FILE, Bundle, Manifest

ASSERTION = """
def test_it(lab):
    machine = lab.boot()
    machine.os.login()
    machine.succeed("echo precious > /tmp/file", "sleep 9999 >/dev/null 2>&1 &")
    assert machine.console.run("cat /proc/uptime").stdout == "never"
"""

RESUMED = """
print("file:", machine.succeed("cat /tmp/file"))
print("process:", machine.console.run("pidof sleep").status)
print("uptime:", machine.console.run("cat /proc/uptime").stdout)
print("ssh:", machine.ssh.run("date +%s").stdout)
print("steps:", [step.data for step in machine.timeline.steps if step.name == "fork"])
fork = machine.fork()
print("fork:", fork.succeed("cat /tmp/file"))
"""


@pytest.fixture
def home(project: Project, kite: Callable[[Project], None]) -> Project:
    """Return a project whose image is fetched by digest."""
    kite(project)
    return project


def fails(project: Project, test: str, *options: str, image: str = "kite") -> Manifest:
    """Run a test that has to fail, and return the manifest of its bundle."""
    project.write("test_it.py", test)
    arguments = ("-q", "--image", image, "--acceptance", "--no-retry", "test_it.py", *options)
    result = project.pytest(*arguments)
    assert result.status not in (0, 2, 3, 4, 5), result.text
    with Bundle(bundle_of(project)) as bundle:
        return bundle.manifest


def bundle_of(project: Project) -> Path:
    (path,) = (project.folder / ".harness/runs/latest").glob(f"*/{FILE}")
    return path


def resurrect(project: Project, bundle: Path, script: str, *options: str, **env: str) -> Finished:
    project.write("script.py", script)
    words = (sys.executable, "-m", "harness.cli", "resurrect", str(bundle), *options)
    text = f"exec {subprocess.list2cmdline(words)} < script.py"
    return project.run("sh", "-c", text, **env)


def answers(result: Finished) -> dict[str, str]:
    """Return what the script printed: names and texts."""
    assert result.status == 0, result.text
    lines = [line.partition(": ") for line in result.text.splitlines()]
    return {name: text.strip() for name, _, text in lines}


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, home: Project) -> Project:
    """Return another folder, which has the description of the image and an empty cache."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "images").symlink_to(home.folder / "images")
    cache = tmp_path_factory.mktemp("cache")
    return Project(folder, env={**home.env, "HARNESS_CACHE": str(cache)})


def test_a_failed_machine_runs_on_elsewhere(home: Project, elsewhere: Project) -> None:
    manifest = fails(home, ASSERTION)
    assert (manifest.test.id, manifest.test.verdict) == ("test_it.py::test_it", "product")
    assert [machine.power for machine in manifest.machines] == ["running"]
    before = float(manifest.test.reason.partition("'")[2].split()[0])
    bundle = bundle_of(home)
    moved = bundle.rename(elsewhere.folder / "moved.zst")
    said = answers(resurrect(elsewhere, moved, RESUMED))
    assert said["file"] == "precious"
    assert said["process"] == "0"
    assert before < float(said["uptime"].split()[0])
    assert said["ssh"].isdecimal()
    assert said["fork"] == "precious"
    # Clock and random pool were seen to.
    (step,) = ast.literal_eval(said["steps"])
    assert not {"clock", "random pool"} & set(step)
    # Nothing of the machine's files is left, and the evidence is.
    folder = elsewhere.folder / ".harness/resurrect/latest/lab"
    assert not list(folder.glob("resurrect-*"))
    assert (folder / "kite/serial.log").exists()


def test_the_image_has_to_be_the_same(home: Project, elsewhere: Project) -> None:
    fails(home, ASSERTION)
    (elsewhere.folder / "images").unlink()
    result = resurrect(elsewhere, bundle_of(home), "")
    assert result.status == 2, result.text
    assert "unknown image 'kite'" in result.text
    path = home.folder / "images/kite/image.yaml"
    kernel = next(line for line in path.read_text().splitlines() if "kernel: {" in line)
    other = home.write("other", "another kernel")
    digest = "sha256: " + hashlib.sha256(other.read_bytes()).hexdigest()
    changed = f'      kernel: {{url: "file://{other}", {digest}}}'
    elsewhere.write("images/kite/image.yaml", path.read_text().replace(kernel, changed))
    elsewhere.write("images/kite.py", (home.folder / "images/kite.py").read_text())
    result = resurrect(elsewhere, bundle_of(home), "")
    assert result.status == 2, result.text
    assert "is another file here: it is made from other files" in result.text
    assert "harness repro" in result.text


def test_a_panicked_machine_can_be_looked_at(home: Project) -> None:
    manifest = fails(
        home,
        """
def test_it(lab):
    machine = lab.boot()
    machine.os.login()
    machine.console.run("echo precious > /tmp/file; echo c > /proc/sysrq-trigger")
""",
    )
    assert "PanicError" in manifest.test.reason
    assert [machine.cold for machine in manifest.machines] == [""]
    script = """
print("power:", machine.qmp.execute("query-status")["status"])
(step,) = [step.data for step in machine.timeline.steps if step.name == "fork"]
print("clock:", step["clock"])
memory = machine.evidence / "memory"
_ = machine.qmp.execute("pmemsave", {"val": 0, "size": machine.spec.memory, "filename": str(memory)})
print("panic:", b"sysrq triggered crash" in memory.read_bytes())
"""
    said = answers(resurrect(home, bundle_of(home), script))
    assert said["power"] == "running"
    assert "that of the origin" in said["clock"]
    assert said["panic"] == "True"


def test_all_machines_are_saved_and_one_whose_qemu_died_boots(home: Project) -> None:
    manifest = fails(
        home,
        """
import os, signal
from harness import Disk, MIB

def test_it(lab):
    a = lab.boot(name="a", disks=[Disk("data", size=64 * MIB)])
    b = lab.boot(name="b")
    a.os.login()
    b.os.login()
    a.succeed("echo kept | dd of=/dev/vda conv=fsync")
    b.succeed("echo b > /tmp/file")
    os.kill(a.pid, signal.SIGKILL)
    a.succeed("true")
""",
    )
    assert manifest.test.verdict == "infra"
    assert [(each.name, bool(each.cold)) for each in manifest.machines] == [
        ("a", True),
        ("b", False),
    ]
    assert "killed by SIGKILL" in manifest.machines[0].cold
    script = """
machines["a"].os.login()
print("a:", machines["a"].succeed("head -c 5 /dev/vda"))
print("b:", machines["b"].succeed("cat /tmp/file"))
print("machine:", machine.name)
"""
    said = answers(resurrect(home, bundle_of(home), script, "--machine", "b"))
    assert (said["a"], said["b"], said["machine"]) == ("kept", "b", "b")


SEGMENT = """
from harness import Nic

def test_it(lab):
    lan = lab.segment("lan")
    a, b = (lab.boot(name=name, nics=[Nic(), Nic.on("lan")], segments=[lan]) for name in "ab")
    for machine in (a, b):
        machine.os.login()
    a.wait_until_succeeds(f"ping -c 1 -W 1 {lan.address('b').ip}")
    a.succeed(f"ping -i 0.2 {lan.address('b').ip} >/tmp/ping 2>&1 &")
    lan.partition(["a"], ["b"])
    assert False, "apart"
"""


def test_machines_and_their_segment_go_on_with_its_faults(home: Project) -> None:
    manifest = fails(home, SEGMENT)
    assert manifest.segments == ("lan",)
    assert manifest.withheld == ()
    script = """
a, b = machines["a"], machines["b"]
lan = a.segments["lan"]
print("apart:", a.execute(f"ping -c 1 -W 1 {lan.address('b').ip}").status)
lan.heal()
print("joined:", a.execute(f"ping -c 1 -W 5 {lan.address('b').ip}").status)
print("process:", a.execute("pidof ping").status)
"""
    said = answers(resurrect(home, bundle_of(home), script))
    assert (said["apart"], said["joined"], said["process"]) == ("1", "0", "0")


FORK = """
from harness import points, state

@state
def ready(lab):
    machine = lab.boot()
    machine.os.login()
    machine.succeed("echo parent > /tmp/parent")
    return machine

def test_it(lab):
    machine = lab.fork(ready, name="leaf")
    machine.succeed("echo fork > /tmp/fork")
    machine.pause()
    assert False, "paused"
"""


def test_a_paused_fork_is_saved(home: Project) -> None:
    manifest = fails(home, FORK)
    assert [machine.power for machine in manifest.machines] == ["paused"]
    script = 'print("files:", machine.succeed("cat /tmp/parent /tmp/fork").split())'
    result = resurrect(home, bundle_of(home), script)
    assert answers(result)["files"] == "['parent', 'fork']"


CHANGING = """
from pathlib import Path

def test_it(lab):
    machine = lab.boot()
    machine.os.login()
    why = Path("why").read_text()
    assert not why, f"{why} after {machine.console.run('cat /proc/uptime').stdout}"
"""


def test_repro_tells_the_same_failure_from_another(home: Project) -> None:
    home.write("why", "tired")
    fails(home, CHANGING, "--bundle=evidence")
    bundle = home.folder / "kept.zst"
    bundle_of(home).rename(bundle)

    def repro(*options: str) -> Finished:
        return home.run(sys.executable, "-m", "harness.cli", "repro", str(bundle), *options)

    same = repro()
    assert same.status == 0, same.text
    assert "it failed in the same way: product" in same.text
    home.write("why", "hungry")
    other = repro()
    assert other.status == 1, other.text
    assert "it failed in another way: product" in other.text
    home.write("why", "")
    passed = repro()
    assert passed.status == 1, passed.text
    assert "it passed" in passed.text
    home.write("test_it.py", CHANGING + "\n# changed\n")
    changed = repro()
    assert changed.status == 2, changed.text
    assert "has changed since then" in changed.text
    assert repro("--anyway").status == 1
    # Its machine was not asked for.
    result = home.run(sys.executable, "-m", "harness.cli", "resurrect", str(bundle))
    assert result.status == 2
    assert "carries no machine" in result.text
    assert "--bundle=evidence" in result.text


SECRET = """
def test_it(lab, declare_secret):
    declare_secret("token", "correct horse")
    other = lab.boot(name="other")
    machine = lab.boot(name="knows")
    machine.os.login()
    machine.succeed("echo 'correct horse' | base64 > /tmp/token; cat /tmp/token; rm /tmp/token")
    assert False, "correct horse was refused"
"""


def test_a_secret_is_in_no_text_and_no_machine(home: Project) -> None:
    manifest = fails(home, SECRET)
    assert [machine.name for machine in manifest.machines] == ["other"]
    assert [each.what for each in manifest.withheld] == ["machine knows"]
    assert "secret token has entered it" in manifest.withheld[0].why
    assert manifest.redacted == ("token",)
    forms = ("correct horse", "Y29ycmVjdCBob3JzZQ", "correct%20horse", b"correct horse".hex())
    with Bundle(bundle_of(home)) as bundle:
        text = bundle.archive.manifest
        content = {m.path: b"".join(p) for m, p in bundle.archive.contents(manifest.files)}
    for form in forms:
        assert form.encode() not in text
        assert [path for path, each in content.items() if form.encode() in each] == []
    assert any(b"[secret token]" in each for each in content.values())
    asked = fails(home, SECRET, "--bundle=machine")
    assert [machine.name for machine in asked.machines] == ["other", "knows"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--untrusted",), "judges what a stranger has changed"),
        (("--bundle-limit=64KiB",), "would be larger than 64.0 KiB"),
    ],
    ids=["untrusted", "limit"],
)
def test_machines_are_left_out(home: Project, options: tuple[str, ...], why: str) -> None:
    manifest = fails(home, ASSERTION, *options)
    assert manifest.machines == ()
    assert [why in each.why for each in manifest.withheld] == [True]
    assert bundle_of(home).stat().st_size < 64 * 1024
    paths = {member.path for member in manifest.files}
    assert {"evidence/timeline.json", "evidence/kite/serial.log"} <= paths


def test_no_bundle_is_made_where_none_is_wanted(home: Project) -> None:
    home.write("test_it.py", ASSERTION)
    home.pytest("-q", "--image=kite", "--acceptance", "test_it.py", "--bundle=none")
    assert not list((home.folder / ".harness").glob(f"**/{FILE}"))


def test_a_machine_that_cannot_be_saved_changes_no_verdict(home: Project) -> None:
    manifest = fails(
        home,
        """
import os, signal
from pathlib import Path
from harness import Disk

def test_it(lab):
    Path("disk.raw").write_bytes(bytes(1 << 20))
    machine = lab.boot(disks=[Disk("data", base=Path("disk.raw").absolute(), in_place=True)])
    assert False, "as ever"
""",
    )
    assert (manifest.test.verdict, manifest.test.reason) == ("product", "AssertionError: as ever")
    assert manifest.machines == ()
    assert "written in place" in manifest.withheld[0].why


STOPPED = """
import os, signal

def test_it(lab):
    machine = lab.boot()
    machine.os.login()
    os.kill(machine.pid, signal.SIGSTOP)
    assert False, "as ever"
"""


def test_a_qemu_that_hangs_is_left_out_and_the_rest_is_kept(home: Project) -> None:
    manifest = fails(home, STOPPED)
    assert (manifest.test.verdict, manifest.test.reason) == ("product", "AssertionError: as ever")
    assert manifest.machines == ()
    (withheld,) = manifest.withheld
    assert withheld.what == "machine kite"
    assert re.fullmatch(r"waited 2\d\.\d s for monitor command query-status", withheld.why)
    assert "evidence/kite/serial.log" in {member.path for member in manifest.files}
    folder = bundle_of(home).parent
    assert not list(folder.glob(".*"))
    assert not (folder / "bundle").exists()


Change = Callable[[dict[str, object]], None]


def test_what_cannot_resume_here_is_refused_with_the_line_that_repeats_it(home: Project) -> None:
    manifest = fails(home, ASSERTION)
    del manifest
    bundle = bundle_of(home)
    for change, why in (
        (lambda snapshot: snapshot.update(qemu="99.0.0"), "the older"),
        (lambda snapshot: snapshot.update(machine="pc-q35-99.0"), "has no machine type"),
        (lambda snapshot: snapshot.update(machine="q35,kernel=/etc/passwd"), "is no name"),
    ):
        other = rewritten(bundle, home.folder / "other.zst", change)
        result = resurrect(home, other, "")
        assert result.status == 2, result.text
        assert why in result.text
        assert f"harness repro {other}" in result.text


def rewritten(bundle: Path, path: Path, change: Change) -> Path:
    """Write a bundle whose manifest has been changed by a person who made all checksums right."""
    from harness.evidence import bundle_archive

    folder = path.parent / "rewritten"
    with Bundle(bundle) as opened:
        members = opened.manifest.files
        bundle_archive.extract(opened.archive, members, folder)
        content = json.loads(opened.archive.manifest)
    change(content["machines"][0]["snapshot"])
    files = [(member, folder / member.path) for member in members]
    bundle_archive.write(path, json.dumps(content).encode(), files)
    shutil.rmtree(folder)
    return path
