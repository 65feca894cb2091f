"""Which tests are collected, whatever else is on the command line: real pytest, nothing is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.run import joined

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
    return {"/".join(each.split("::")[0].split("/")[:-1]) for each in ids}


@pytest.mark.parametrize("there", [True, False], ids=["a folder", "no folder yet"])
def test_the_value_of_an_option_is_no_path_to_tests(tmp_path: Path, there: bool) -> None:
    evidence = tmp_path / "evidence"
    if there:
        evidence.mkdir()
    told = ("--image", "micro", "--evidence", str(evidence))
    cli = (sys.executable, "-m", "harness.cli", "run")
    everything = collected(*cli)
    assert {"suites/boot", "suites/power"} <= everything
    assert all(each.startswith("suites/") for each in everything)
    assert collected(*cli, *told) == everything
    assert collected(*cli, *told, "suites/boot") == {"suites/boot"}
    assert collected(*cli, "suites/boot/test_live.py", *told) == {"suites/boot"}


def test_folders_are_joined_to_the_options_that_name_them() -> None:
    given = ["-x", "--images", "/a", "suites", "--evidence=/b", "--recording", "/c", "--evidence"]
    wanted = ["-x", "--images=/a", "suites", "--evidence=/b", "--recording=/c", "--evidence"]
    assert joined(given) == wanted
