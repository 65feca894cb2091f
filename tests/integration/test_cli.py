"""The command line, in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def harness(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_doctor_tells_people_and_programs() -> None:
    told = harness("doctor")
    assert told.returncode == 0, told.stdout
    assert "accel x86_64" in told.stdout
    report = json.loads(harness("doctor", "--json").stdout)
    findings = {each["name"]: each for each in report["findings"]}
    assert report["ok"] is True
    assert findings["accel x86_64"]["data"]["accel"] in ("kvm", "tcg")
    assert findings["accel x86_64"]["data"]["reason"]
    assert findings["memory"]["data"]["memory"] > 0
    assert "holes" in findings["cache file system"]["text"]


def test_doctor_without_qemu_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "setpriv").symlink_to("/usr/bin/setpriv")
    told = harness("doctor", PATH=str(tmp_path))
    assert told.returncode == 3
    assert "install the package qemu-system-x86" in told.stdout


def test_doctor_boots_each_arch() -> None:
    report = json.loads(harness("doctor", "--json", "--boot").stdout)
    booted = {each["name"]: each for each in report["findings"] if each["name"].startswith("boot")}
    assert set(booted) == {"boot x86_64", "boot aarch64"}
    assert all(each["ok"] for each in booted.values()), booted


def test_images_are_built_listed_found_and_collected(tmp_path: Path) -> None:
    cache = {"HARNESS_CACHE": str(tmp_path)}
    assert "-" in harness("images", "list", **cache).stdout
    built = harness("images", "build", "micro", **cache)
    assert built.returncode == 0, built.stderr
    path = Path(harness("images", "path", "micro", "kernel", **cache).stdout.strip())
    assert path.is_file()
    assert path.is_relative_to(tmp_path)
    assert path.parent == Path(built.stdout.strip())
    listed = harness("images", "list", **cache).stdout.splitlines()
    assert any(line.startswith("micro/default:1") and "ready" in line for line in listed)
    assert "0 entries" in harness("images", "gc", **cache).stdout
    assert harness("images", "verify", **cache).returncode == 0
    assert harness("images", "gc", "--all", **cache).returncode == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("images", "build", "skif"), "did you mean skiff"),
        (("images", "build", "micro:9"), "unknown version of micro '9'"),
        (("images", "build", "micro", "--arch", "x86-64"), "did you mean x86_64"),
        (("images", "path", "micro", "kernl"), "did you mean kernel"),
        (("images", "build", "a/b/c"), "NAME/VARIANT:VERSION"),
        (("shell", "micro"), "needs a terminal"),
        (("run", "--image", "skif", "--co", "-q"), "did you mean skiff"),
    ],
)
def test_wrong_names_are_usage_errors(arguments: tuple[str, ...], says: str) -> None:
    told = harness(*arguments)
    assert told.returncode in (2, 4)
    assert says in told.stderr + told.stdout


def test_a_shell_for_a_person_and_ctrl_bracket_leaves(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "shell", "micro"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        os.close(follower)
        try:

            def until(text: bytes) -> None:
                seen = b""
                while text not in seen:
                    seen += os.read(leader, 4096)

            until(b"micro login: ")
            os.write(leader, b"root\r")
            until(b"assword: ")
            os.write(leader, b"micro\r")
            until(b"# ")
            os.write(leader, b"echo per''son\r")
            until(b"person")
            os.write(leader, b"\x1d")
            until(b"evidence: ")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(leader)
    (folder,) = (tmp_path / ".harness" / "shell").iterdir()
    assert b"person" in (folder / "serial.log").read_bytes()
