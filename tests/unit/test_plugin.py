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


def collect(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    suite = folder / "test_suite.py"
    suite.write_text(text)
    return subprocess.run(
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


def collected(folder: Path, *options: str) -> list[str]:
    done = collect(folder, SUITE, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]


def test_nightly_scenarios_are_left_out_unless_all_are_wanted(tmp_path: Path) -> None:
    assert collected(tmp_path) == ["test_each_time"]
    assert collected(tmp_path, "--all") == ["test_each_time", "test_at_night"]


NEEDS = """
import pytest

@pytest.mark.needs({!r})
def test_it(): ...
"""


@pytest.mark.parametrize(
    ("needed", "says"),
    [
        ("verify", "needs 'verify', which is no capability: ssh, seed"),
        ("x_omaha", "one of your own begins with x-"),
    ],
)
def test_what_is_no_capability_is_refused(tmp_path: Path, needed: str, says: str) -> None:
    done = collect(tmp_path, NEEDS.format(needed))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert says in done.stdout + done.stderr


def test_a_capability_of_a_project_s_own_is_one(tmp_path: Path) -> None:
    done = collect(tmp_path, NEEDS.format("x-omaha"), "--image", "micro")
    assert done.returncode == 0, done.stdout + done.stderr


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
