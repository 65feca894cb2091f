"""How many points a sweep tries: its module's number, four without one, or what the option says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def collect(folder: Path, mark: str, *options: str) -> tuple[int, str]:
    suite = folder / "test_suite.py"
    suite.write_text(f"import pytest\n\n{mark}\n\ndef test_it(cut): ...\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:labgrid"),
            *("--strict-markers", "-p", "fixtures.plugin", f"--evidence={folder}/runs"),
            *("--rootdir", str(folder), str(suite), *options),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("mark", "options", "last"),
    [
        ("", [], "4of4"),
        ("pytestmark = pytest.mark.cuts(2)", [], "2of2"),
        ("pytestmark = pytest.mark.cuts(2)", ["--cuts", "3"], "3of3"),
        ("pytestmark = pytest.mark.cuts(2)", ["--cut", "w00007-clean"], "w00007-clean"),
        ("pytestmark = pytest.mark.cuts(2)", ["--all"], "40of40"),
        ("pytestmark = pytest.mark.cuts(2)", ["--all", "--cuts", "3"], "3of3"),
    ],
)
def test_a_sweep_says_how_many(tmp_path: Path, mark: str, options: list[str], last: str) -> None:
    status, told = collect(tmp_path, mark, *options)
    assert status == 0, told
    found = [line for line in told.splitlines() if "::" in line]
    assert found[-1].endswith(f"test_it[{last}]")
    assert len(found) == (1 if "-" in last else int(last.split("of", maxsplit=1)[0]))


@pytest.mark.parametrize("arguments", ["0", "'2'", "", "2, 3"])
def test_a_marker_that_says_none_is_refused(tmp_path: Path, arguments: str) -> None:
    status, told = collect(tmp_path, f"pytestmark = pytest.mark.cuts({arguments})")
    assert status != 0
    assert "cuts takes a number of at least 1" in told
