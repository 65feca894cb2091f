"""The images that are broken on purpose: each names a scenario that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.broken.cases import CASES

ROOT = Path(__file__).resolve().parents[2]


def test_each_case_s_scenario_exists(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:labgrid"),
            *("--tier", "nightly", "--image", "skiff", f"--evidence={tmp_path}", "suites"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    there = {line for line in process.stdout.splitlines() if "::" in line}
    for case in CASES:
        wanted = f"suites/{case.scenario}"
        assert any(each == wanted or each.startswith(f"{wanted}::") for each in there), case.name


def test_each_case_has_a_name_and_a_reason_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        assert not re.search(case.says, ""), f"{case.name} says anything"
