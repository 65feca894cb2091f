"""The pytest plugin's own decisions: which scenarios run, and by how many workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import plugin
from harness.host import Capacity
from harness.spec import GIB

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
import pytest

def test_each_time(): ...

@pytest.mark.nightly
def test_at_night(): ...
"""


def collected(folder: Path, *options: str) -> list[str]:
    suite = folder / "test_suite.py"
    suite.write_text(SUITE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:labgrid"),
            *("--rootdir", str(folder), "-p", "fixtures.plugin", f"--evidence={folder}/runs"),
            *(str(suite), *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]


def test_nightly_scenarios_are_left_out_unless_all_are_wanted(tmp_path: Path) -> None:
    assert collected(tmp_path) == ["test_each_time"]
    assert collected(tmp_path, "--all") == ["test_each_time", "test_at_night"]


@pytest.mark.parametrize(
    ("cpus", "memory", "wanted", "workers"),
    [(2, 24, 2, 2), (8, 64, 8, 8), (8, 8, 8, 3), (16, 64, 4, 4), (2, 3, 2, 1)],
)
def test_auto_means_what_the_host_carries(
    monkeypatch: pytest.MonkeyPatch, cpus: float, memory: int, wanted: int, workers: int
) -> None:
    room = Capacity(cpus, memory * GIB, memory * GIB, "host", "host")
    monkeypatch.setattr(plugin, "capacity", lambda: room)
    hook = plugin.pytest_xdist_auto_num_workers(None)  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(wanted)  # type: ignore[attr-defined]
    assert ended.value.value == workers
