"""Real pytest collects the right tests for each command line. Nothing runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.acceptance import joined

ROOT = Path(__file__).resolve().parents[2]


def collected(*command: str) -> set[str]:
    """Return the folders of the tests that a command collects."""
    done = subprocess.run(
        [*command, "--collect-only", "-q", "-n0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ids = [line for line in done.stdout.splitlines() if "::" in line]
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
