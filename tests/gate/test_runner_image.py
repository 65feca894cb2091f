"""The runner image: built by its own Containerfile, and run as a restricted pod runs it.

It is built without a daemon and run by runc: user 1001, no capability, no-new-privileges, a read-only
root, a loopback, a limit of memory. Not run here: Kubernetes, a container registry, the official actions
runner (the stage ``runner``), hardware virtualisation.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "runners" / "image"
POD = ROOT / "runners" / "pod"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
USER = 1001
MIB = 1024 * 1024
GOAL = 300 * 1000 * 1000
"""Bytes of the compressed image, at most."""


@pytest.fixture(scope="session")
def built() -> Path:
    """Return the folder of the image, built from this checkout."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the image has files of several users, and runc sets up a pod")
    for tool in ("buildah", "mmdebstrap", "runc", "zstd"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: install the package {tool}")
    folder = ROOT / ".harness" / "runner-image"
    process = subprocess.run(
        [IMAGE, "build", "--cache", folder], stdout=subprocess.PIPE, check=False
    )
    assert process.returncode == 0
    return folder


@pytest.fixture(scope="session")
def root(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the image's root file system."""
    folder = tmp_path_factory.mktemp("image") / "root"
    subprocess.run([IMAGE, "unpack", "--cache", built, folder], check=True)
    # User 1001 has to get to it through pytest's folders, which are closed to others.
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the entry of micro in the host's cache: a pod cannot build it, and is handed it."""
    command = [sys.executable, "-m", "harness.cli", "images", "build", "micro", "--json"]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return Path(json.loads(process.stdout)["images"][0]["path"])


class Pod:
    """Runs commands in the image, each in a new pod with the same checkout and cache."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.work, self.cache = root, folder / "work", folder / "cache"
        self.work.mkdir()
        (self.cache / "entries").mkdir(parents=True)
        files = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        for name in files.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (self.work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.work / name)
        self.give()

    def give(self, entry: Path | None = None) -> None:
        """Put an entry into the cache, and make all files the pod's user's."""
        if entry is not None:
            shutil.copytree(entry, self.cache / "entries" / entry.name, dirs_exist_ok=True)
        for base, folders, names in os.walk(self.work.parent):
            for name in (*folders, *names):
                os.chown(Path(base, name), USER, USER, follow_symlinks=False)

    def command(self, *words: str, options: tuple[str, ...] = ()) -> list[str | Path]:
        return [
            *(POD, "--root", self.root, "--work", self.work, "--cache", self.cache),
            *(*options, "--", *words),
        ]

    def run(self, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words, options=options), capture_output=True, text=True, check=False
        )

    def doctor(self, *words: str, options: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
        """Return the status of ``harness doctor --gate`` and its findings by name."""
        process = self.run(
            "./run", "harness", "doctor", "--gate", "--json", *words, options=options
        )
        assert process.stdout, process.stderr
        report = json.loads(process.stdout)
        return process.returncode, {each["name"]: each for each in report["findings"]}

    def results(self) -> dict[str, Any]:
        """Return the results of the newest run."""
        content: dict[str, Any] = json.loads(
            (self.work / ".harness" / "runs" / "latest" / "results.json").read_text()
        )
        return content


@pytest.fixture
def pod(root: Path, tmp_path: Path) -> Pod:
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    return Pod(root, tmp_path)


# --- the image --------------------------------------------------------------------------------


def test_it_is_small_enough(built: Path) -> None:
    report = json.loads((built / f"harness-{ARCH}.json").read_text())
    assert report["bytes"][f"harness-{ARCH}.oci.tar"] < GOAL
    assert report["bytes"][f"harness-{ARCH}.rootfs.tar.zst"] < GOAL


def test_nothing_of_the_builder_stays_in_it(root: Path) -> None:
    assert not list((root / "run" / "secrets").glob("*"))
    assert not (root / "opt" / "build").exists()
    configuration = [path.name for path in (root / "etc" / "apt" / "apt.conf.d").iterdir()]
    assert "99mmdebstrap" not in configuration
    assert not list((root / "etc").glob("pip*"))
    # The stage that installs Harness has pip; the image has neither it nor a compiler.
    for program in ("pip3", "gcc", "hatchling"):
        assert not (root / "usr" / "bin" / program).exists()


def test_it_says_when_and_from_what_it_was_built(root: Path, built: Path) -> None:
    record = json.loads((root / "opt" / "harness" / "image.json").read_text())
    report = json.loads((built / f"harness-{ARCH}.json").read_text())
    assert (record["commit"], record["built"]) == (report["commit"], report["built"])
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["built"])


def test_its_command_has_no_privilege(pod: Pod) -> None:
    process = pod.run(
        *(
            "sh",
            "-c",
            "id -u; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; cat /proc/net/dev",
        ),
        options=("--memory", "512"),
    )
    lines = process.stdout.splitlines()
    assert lines[0] == str(USER)
    status = dict(line.split(":\t") for line in lines[1:4])
    assert status == {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    assert [line.split(":")[0].strip() for line in lines[6:]] == ["lo"]
    for place in ("/", "/opt/harness", "/usr/bin", "/etc"):
        denied = pod.run("touch", f"{place}/x")
        assert "Read-only file system" in denied.stderr


# --- the doctor -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "states"),
    [("absent", {"absent"}), ("forbidden", {"forbidden"}), ("open", {"useless", "usable"})],
)
def test_the_doctor_tells_kvms_apart(pod: Pod, device: str, states: set[str]) -> None:
    if device != "absent" and not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm: load the kernel's kvm module")
    status, findings = pod.doctor(options=("--kvm", device))
    assert status == 0, findings
    assert findings["kvm"]["data"]["state"] in states
    assert findings["memory"]["data"]["memory"] == 4096 * MIB
    assert findings["runner age"]["data"]["days"] < 1
    demanding, findings = pod.doctor("--kvm", options=("--kvm", device))
    usable = findings["kvm"]["data"]["state"] == "usable"
    assert demanding == (0 if usable else 11)


def test_a_small_limit_makes_the_runner_unfit(pod: Pod) -> None:
    status, findings = pod.doctor(options=("--memory", "600"))
    assert status == 11
    assert [name for name, each in findings.items() if each["needed"] and not each["ok"]] == [
        "memory"
    ]


def test_the_dependencies_of_another_checkout_are_infra(pod: Pod) -> None:
    (pod.work / "requirements" / "run.lock").write_text("")
    process = pod.run("./run", "harness", "doctor")
    assert process.returncode == 11
    assert "not those of this runner image" in process.stderr


# --- runs -------------------------------------------------------------------------------------


def acceptance(*words: str) -> tuple[str, ...]:
    return ("./run", "acceptance", *words, "--image", "micro", "-p", "no:cacheprovider")


LOGIN = ("suites/boot/test_live.py", "-k", "power_on_to_login")


@pytest.mark.parametrize("device", ["absent", "open"])
def test_micro_boots_and_is_judged(pod: Pod, micro: Path, device: str) -> None:
    if device != "absent" and not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm: load the kernel's kvm module")
    pod.give(micro)
    process = pod.run(*acceptance(*LOGIN), options=("--kvm", device))
    assert process.returncode == 0, process.stdout + process.stderr
    assert pod.results()["verdicts"] == {"passed": 1}


FORKS = """
from harness import Lab, points

def test_forks(lab: Lab) -> None:
    forks = [lab.fork(points.live) for _ in range(2)]
    assert len({fork.os.version() for fork in forks}) == 1
    assert all(fork.succeed("echo it answers") for fork in forks)
"""


def test_forks_are_made_from_a_saved_machine(pod: Pod, micro: Path) -> None:
    (pod.work / "forks").mkdir()
    (pod.work / "forks" / "test_forks.py").write_text(FORKS)
    pod.give(micro)
    process = pod.run(*acceptance("forks/test_forks.py"))
    assert process.returncode == 0, process.stdout + process.stderr
    assert pod.results()["verdicts"] == {"passed": 1}
    assert list((pod.cache / "states" / "entries").iterdir())


def test_a_limit_below_the_machine_is_infra(pod: Pod, micro: Path) -> None:
    pod.give(micro)
    process = pod.run(*acceptance(*LOGIN), options=("--memory", "400"))
    assert process.returncode == 11, process.stdout + process.stderr
    results = pod.results()
    assert (results["status"], results["verdicts"]) == (11, {"infra": 1})
    assert (
        "memory.limit_in_bytes" in results["tests"][0]["reason"]
        or "memory.max" in (results["tests"][0]["reason"])
    )


# Writes so many MiB into a memory file, as a machine that is going to be saved has its RAM in one.
FILL = (
    "import os, sys; f = os.memfd_create('ram'); [os.write(f, bytes(1 << 20)) for _ in range({})]"
)


def test_the_limit_counts_the_ram_of_machines_that_are_saved(pod: Pod) -> None:
    more_than_shm = pod.run("python3", "-c", FILL.format(100), options=("--memory", "256"))
    assert more_than_shm.returncode == 0, more_than_shm.stderr
    more_than_the_limit = pod.run("python3", "-c", FILL.format(300), options=("--memory", "256"))
    assert more_than_the_limit.returncode == 128 + signal.SIGKILL


WAITS = """
import os
from harness import Lab

def test_waits(lab: Lab) -> None:
    machine = lab.boot()
    machine.os.login()
    print("MACHINE RUNS", flush=True)
    machine.console.expect("a word that never comes")
"""


def test_sigterm_in_mid_test_leaves_results(pod: Pod, micro: Path) -> None:
    (pod.work / "waits").mkdir()
    (pod.work / "waits" / "test_waits.py").write_text(WAITS)
    pod.give(micro)
    command = pod.command(*acceptance("waits/test_waits.py", "-s"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("MACHINE RUNS" in line for line in lines), "it ended before its machine ran"
        process.send_signal(signal.SIGTERM)
        # A kubelet kills what is left after 30 s (terminationGracePeriodSeconds, Pod API).
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 2, rest
    [test] = pod.results()["tests"]
    assert test["outcome"] == "interrupted"
    assert test["reason"] == "SIGTERM ended the run"
