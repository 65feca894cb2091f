"""Real pytest collects the right tests for each command line. Nothing runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.acceptance import joined
from tests.programs import need

ROOT = Path(__file__).resolve().parents[2]


def collected(*command: str) -> set[str]:
    """Return the folders of the tests that a command collects."""
    process = subprocess.run(
        [*command, "--collect-only", "-q", "-n0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    ids = [line for line in process.stdout.splitlines() if "::" in line]
    return {"/".join(name.split("::")[0].split("/")[:-1]) for name in ids}


@pytest.mark.parametrize("exists", [True, False], ids=["a folder", "no folder yet"])
def test_pytest_takes_no_options_value_for_a_path(tmp_path: Path, exists: bool) -> None:
    evidence = tmp_path / "evidence"
    if exists:
        evidence.mkdir()
    options = ("--image", "micro", "--evidence", str(evidence))
    cli = (sys.executable, "-m", "harness.cli", "acceptance")
    everything = collected(*cli)
    assert {"suites/boot", "suites/power"} <= everything
    assert all(folder.startswith("suites/") for folder in everything)
    assert collected(*cli, *options) == everything
    assert collected(*cli, *options, "suites/boot") == {"suites/boot"}
    assert collected(*cli, "suites/boot/test_live.py", *options) == {"suites/boot"}


def refused(*command: str, folder: Path, **environment: str) -> str:
    """Return what a command prints that ends as a usage error."""
    process = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == pytest.ExitCode.USAGE_ERROR, process.stdout + process.stderr
    return process.stdout + process.stderr


def test_a_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    text = refused(
        *(sys.executable, "-m", "harness.cli", "acceptance", "--image", "micro"),
        *("--images", "none", "--collect-only"),
        folder=tmp_path,
        **os.environ,
    )
    assert "ERROR: --images none: there is no such folder" in text


def test_a_user_without_a_home_is_asked_for_a_cache_before_anything_starts(tmp_path: Path) -> None:
    """As in a restricted pod, the user has no passwd entry, and HOME is not set."""
    need("unshare")
    user = ("unshare", "--user", "--map-user=54321")
    if subprocess.run([*user, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces (sysctl user.max_user_namespaces)")
    command = (*user, sys.executable, "-m", "harness.cli", "acceptance", "--image", "micro")
    environment = {name: os.environ[name] for name in ("PATH",)}
    text = refused(*command, "--collect-only", folder=tmp_path, **environment)
    assert "no folder for the cache: user 54321 has no HOME and no passwd entry" in text
    assert "set HARNESS_CACHE to a folder that this user can write to" in text
    environment["HARNESS_CACHE"] = str(tmp_path / "cache")
    process = subprocess.run(
        [*command, "suites/boot", "--collect-only", "-q"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_command_line_joins_options_and_their_folders() -> None:
    arguments = [
        "-x",
        "--images",
        "/a",
        "suites",
        "--evidence=/b",
        "--recording",
        "/c",
        "--evidence",
    ]
    expected = ["-x", "--images=/a", "suites", "--evidence=/b", "--recording=/c", "--evidence"]
    assert joined(arguments) == expected
