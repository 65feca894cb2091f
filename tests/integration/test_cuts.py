"""A sweep finds a system that forgets a flush, names where, and runs that cut alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A system of two slots: it writes the new one, then the pointer to it. One of them flushes between.
SUITE = """
from __future__ import annotations

import pytest

from harness.spec import MIB, Disk

FLUSH = {flush!r}
PUT = "yes {{}} | head -c 4096 | dd of=/dev/vda bs=4096 seek={{}} oflag=direct conv=notrunc; "
SYNC = "dd if=/dev/null of=/dev/vda conv=fsync,notrunc; "


@pytest.fixture(scope="module")
def recording(record):
    return record("upgrade", upgrade)


def upgrade(boot, fork_of, folder):
    with open("recorded", "a") as told:
        told.write("x")
    machine = boot("micro", disks=[Disk("target", size=2 * MIB)]).wait_ready()
    machine.succeed(PUT.format("a", 2) + PUT.format("1", 0) + SYNC)
    with machine.recording("target", folder) as recording:
        for number, letter in enumerate("bcdefghijk", 2):
            machine.succeed(PUT.format(letter, number % 2 + 1) + (SYNC if FLUSH else ""))
            machine.succeed(PUT.format(number, 0) + SYNC)
        recording.mark("done")
        machine.power_cut()
    return recording


def test_the_pointer_is_to_what_is_there(cut):
    data = cut.path.read_bytes()
    number = int(data[:4096].split(b"\\n")[0])
    letter = b" abcdefghijk"[number : number + 1]
    here = data[4096 * (number % 2 + 1) :][:4096]
    assert here == (letter + b"\\n") * 2048, "neither old nor new"
    assert not cut.after("done") or number == 11
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fixtures.plugin"]\n')
    return tmp_path


def run(folder: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--image", "micro"),
            *options,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_one_that_flushes_survives_every_cut_on_two_workers(sweep: Path) -> None:
    (sweep / "test_upgrade.py").write_text(SUITE.format(flush=True))
    status, told = run(sweep, "--cuts", "80", "-n", "2", "-vv")
    assert status == 0, told
    assert "80 passed" in told
    assert "[01of80]" in told
    (line,) = [line for line in told.splitlines() if line.startswith("upgrade: ")]
    assert "20 writes, 20 flushes; 41 places of 4 kinds are 164 points" in line
    assert (sweep / "recorded").read_text() == "x", "both workers have recorded"
    assert not list(sweep.glob(".harness/runs/2*/recordings")), "a recording is left behind"


def test_one_that_does_not_is_found_and_named(sweep: Path) -> None:
    (sweep / "test_upgrade.py").write_text(SUITE.format(flush=False))
    # Enough that chance decides nothing: each place is tried several times.
    status, told = run(sweep, "--cuts", "200")
    assert status == 1, told
    assert "neither old nor new" in told
    found = re.findall(r"^failed (\S+); alone: (\S+) --cut (\S+) --recording (\S+)$", told, re.M)
    assert found, told
    assert {name.split("-")[1] for name, *_ in found} <= {"lost", "reordered"}
    name, file, same, recording = found[0]
    assert name == same
    for _ in range(2):
        status, told = run(sweep, file, "--cut", name, "--recording", recording)
        assert status == 1, told
        assert f"test_the_pointer_is_to_what_is_there[{name}]" in told
        assert "1 failed" in told
    assert (sweep / "recorded").read_text() == "x", "it was recorded anew"
    place = name.split("-")[0]
    status, told = run(sweep, file, "--cut", f"{place}-flushed", "--recording", recording)
    assert status == 0, told


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cuts", "0"], "--cuts is at least 1, not 0"),
        (["--cut", "w1-torn"], "'w1-torn' is no crash point"),
        (["--recording", "nowhere"], "recording.json is missing"),
    ],
)
def test_wrong_options_are_refused(sweep: Path, options: list[str], says: str) -> None:
    (sweep / "test_upgrade.py").write_text(SUITE.format(flush=True))
    status, told = run(sweep, *options)
    assert status == 4, told
    assert says in told
    assert not (sweep / "recorded").exists()
