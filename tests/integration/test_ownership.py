"""A run that is interrupted or killed leaves its evidence, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCENARIO = """
from pathlib import Path

def test_waits_for_ever(lab):
    machine = lab.boot("micro")
    Path("pid").write_text(str(machine.pid))
    machine.console.expect("never printed", 100_000)
"""


@dataclass
class Running:
    """A run in a process of its own, whose machine is up."""

    runner: subprocess.Popen[str]
    qemu: int
    folder: Path

    def qemu_ended(self) -> bool:
        """Wait for the end of QEMU, whose pidfd is readable then."""
        return select.select([self.qemu], [], [], 60)[0] == [self.qemu]

    def evidence(self) -> list[Path]:
        return list((self.folder / ".harness" / "runs").glob("2*/*/micro"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Running]:
    # All the files that another project writes to use Harness.
    (tmp_path / "test_it.py").write_text(SCENARIO)
    runner = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--image", "micro"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    qemu = -1
    try:
        qemu = os.pidfd_open(int(when_written(tmp_path / "pid", runner)))
        yield Running(runner, qemu, tmp_path)
    finally:
        with contextlib.suppress(ProcessLookupError):
            runner.kill()
        runner.communicate()
        if qemu >= 0:
            os.close(qemu)


def when_written(path: Path, runner: subprocess.Popen[str]) -> str:
    """Return the text of a file as soon as the runner has written it."""
    end = time.monotonic() + 120
    while time.monotonic() < end and runner.poll() is None:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)  # Another process' file: only a file watcher could wake this one.
    raise AssertionError("the run did not start its machine")


def test_ctrl_c_stops_in_order_and_keeps_the_evidence(run: Running) -> None:
    run.runner.send_signal(signal.SIGINT)
    output, _ = run.runner.communicate(timeout=120)
    assert run.runner.returncode == 2, output
    assert run.qemu_ended()
    (folder,) = run.evidence()
    assert (folder / "serial.log").exists()
    assert not (folder.parents[1] / "run.lock").exists(), "the run ended in order"
    assert "KeyboardInterrupt" in output
    (results,) = (run.folder / ".harness" / "runs").glob("2*/results.json")
    (test,) = json.loads(results.read_text())["tests"]
    assert (test["outcome"], test["verdict"]) == ("interrupted", "")
    assert results.parent / test["evidence"] == folder.parent


def test_sigterm_ends_in_order_and_is_the_reason(run: Running) -> None:
    """A pod that is evicted: results and reports are there, and no machine."""
    run.runner.send_signal(signal.SIGTERM)
    output, _ = run.runner.communicate(timeout=120)
    assert run.runner.returncode == 2, output
    assert run.qemu_ended()
    assert "SIGTERM ended the run" in output
    (folder,) = run.evidence()
    assert not (folder.parents[1] / "run.lock").exists(), "the run ended in order"
    (results,) = (run.folder / ".harness" / "runs").glob("2*/results.json")
    (test,) = json.loads(results.read_text())["tests"]
    assert (test["outcome"], test["verdict"]) == ("interrupted", "infra")
    assert test["reason"] == "SIGTERM ended the run"
    assert results.parent / test["evidence"] == folder.parent
    assert "interrupted: SIGTERM" in (results.parent / "junit.xml").read_text()


def test_ctrl_c_twice_leaves_no_machine(run: Running) -> None:
    run.runner.send_signal(signal.SIGINT)
    run.runner.send_signal(signal.SIGINT)
    output, _ = run.runner.communicate(timeout=120)
    assert run.runner.returncode != 0
    assert "Traceback" not in output
    assert run.qemu_ended()
    assert run.evidence()


def test_kill_9_leaves_no_machine_and_the_next_run_tidies(run: Running) -> None:
    run.runner.kill()
    assert run.qemu_ended()
    (folder,) = run.evidence()
    assert (folder / "disks").exists()
    (run.folder / "test_it.py").write_text("def test_it(lab): assert lab.folder.is_dir()\n")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--image", "micro"],
        cwd=run.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert not (folder / "disks").exists()
    assert (folder / "serial.log").exists()
