"""A run that ends before its time leaves its results, its evidence and the reason."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Project
from tests.programs import HEARS_HANGUPS

LONG = 600
"""Seconds that no step takes: on a starved host, two seconds of CPU time were seen to take 160."""

BEGUN = "begun"
"""The pipe into which a test writes when it waits."""

WAITS = """
import os
import threading

import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_waits(lab, number):
    (lab.folder / "log").write_text("")
    with open("begun", "w") as pipe:
        pipe.write("x")
    threading.Event().wait()
"""

CONFTEST = """
import pytest

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Seen())

class Seen:
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        if report.when == "setup":
            with open("begun", "w") as pipe:
                pipe.write("x")
"""
"""The controller writes as well: what a worker has reported, and it has not read, is in no results."""

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:labgrid", "--acceptance")
HARNESS = ("-m", "harness.cli", "acceptance")


@dataclass
class Run:
    """A run in a process of its own, and the pipe into which it writes."""

    process: subprocess.Popen[str]
    pipe: int

    def wait(self, count: int) -> None:
        """Wait until the run has written so often; ends if the run does."""
        ended = os.pidfd_open(self.process.pid)
        try:
            for _ in range(count):
                ready, _, _ = select.select([self.pipe, ended], [], [], LONG)
                assert self.pipe in ready, "the run ended, or did not get there"
                assert os.read(self.pipe, 1) == b"x"
        finally:
            os.close(ended)


@contextmanager
def waiting(
    project: Project,
    *command: str,
    tests: int,
    also: str = "",
    text: str = WAITS,
    arguments: tuple[str, ...] = ("--image", "micro", "-q", "test_it.py"),
    terminal: int | None = None,
) -> Iterator[Run]:
    """Start a run, at a terminal if given, and return it once so many tests wait."""
    project.write("test_it.py", text)
    project.write("conftest.py", CONFTEST + also)
    os.mkfifo(project.folder / BEGUN)
    # Opened for writing as well, the pipe has no end of file between two tests.
    pipe = os.open(project.folder / BEGUN, os.O_RDWR)
    process = subprocess.Popen(
        [
            "setsid",
            *(() if terminal is None else ("--ctty",)),
            *HEARS_HANGUPS,
            project.python,
            *command,
            *arguments,
        ],
        cwd=project.folder,
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        run = Run(process, pipe)
        run.wait(2 * tests)
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        os.close(pipe)


def results(project: Project) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((latest(project) / "results.json").read_text())
    return content


def latest(project: Project) -> Path:
    return project.folder / ".harness/runs/latest"


@pytest.mark.parametrize(
    ("command", "tests"),
    [(PYTEST, 1), ((*PYTEST, "-n", "2"), 2), ((*HARNESS, "-n", "2"), 2)],
    ids=["pytest", "workers", "harness acceptance"],
)
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_sigterm_leaves_results_evidence_and_the_reason(
    project: Project, command: tuple[str, ...], tests: int, group: bool
) -> None:
    with waiting(project, *command, tests=tests) as run:
        # A supervisor signals the process that it started; a shell or systemd, all of them.
        if group:
            os.killpg(run.process.pid, signal.SIGTERM)
        else:
            run.process.send_signal(signal.SIGTERM)
        output, _ = run.process.communicate(timeout=LONG)
    assert run.process.returncode == 2, output
    content = results(project)
    assert content["status"] == 2
    assert len(content["tests"]) == tests
    for test in content["tests"]:
        assert (test["outcome"], test["verdict"]) == ("interrupted", "infra")
        assert test["reason"].startswith("SIGTERM")
        assert (latest(project) / test["evidence"] / "log").exists()
    assert "SIGTERM" in output
    cases = list(ET.parse(latest(project) / "junit.xml").getroot().iter("testcase"))
    assert len(cases) == tests
    for case in cases:
        (error,) = case.iter("error")
        assert "SIGTERM" in error.get("message", "")
        (evidence,) = (each for each in case.iter("property") if each.get("name") == "evidence")
        assert Path(evidence.get("value", "")).is_dir()


@pytest.mark.parametrize(
    ("command", "tests"),
    [(PYTEST, 1), ((*PYTEST, "-n", "2"), 2), ((*HARNESS, "-n", "2"), 2)],
    ids=["pytest", "workers", "harness acceptance"],
)
def test_a_closed_terminal_leaves_results_evidence_and_the_reason(
    project: Project, command: tuple[str, ...], tests: int
) -> None:
    ours, theirs = pty.openpty()
    with waiting(project, *command, tests=tests, terminal=theirs) as run:
        os.close(theirs)
        os.close(ours)
        assert run.process.wait(LONG) == 2
    content = results(project)
    assert content["status"] == 2
    assert len(content["tests"]) == tests
    for test in content["tests"]:
        assert (test["outcome"], test["verdict"]) == ("interrupted", "infra")
        assert test["reason"] == "SIGHUP ended the run: its terminal was closed"
        assert (latest(project) / test["evidence"] / "log").exists()
    assert (latest(project) / "junit.xml").exists()


@pytest.mark.parametrize(
    ("command", "tests"),
    [(PYTEST, 1), ((*PYTEST, "-n", "2"), 2), ((*HARNESS, "-n", "2"), 2)],
    ids=["pytest", "workers", "harness acceptance"],
)
def test_a_test_that_ctrl_c_interrupts_names_its_evidence(
    project: Project, command: tuple[str, ...], tests: int
) -> None:
    with waiting(project, *command, tests=tests) as run:
        os.killpg(run.process.pid, signal.SIGINT)  # As a terminal does.
        output, _ = run.process.communicate(timeout=LONG)
    assert run.process.returncode == 2, output
    content = results(project)
    assert len(content["tests"]) == tests
    for test in content["tests"]:
        assert (test["outcome"], test["verdict"]) == ("interrupted", "")
        assert (latest(project) / test["evidence"] / "log").exists()


ENDS_SLOWLY = """
def pytest_sessionfinish():
    with open("begun", "w") as pipe:
        pipe.write("x")
    import threading
    threading.Event().wait()
"""


@pytest.mark.parametrize("command", [PYTEST, HARNESS], ids=["pytest", "harness acceptance"])
def test_a_second_ctrl_c_ends_at_once_and_without_a_traceback(
    project: Project, command: tuple[str, ...]
) -> None:
    with waiting(project, *command, tests=1, also=ENDS_SLOWLY) as run:
        os.killpg(run.process.pid, signal.SIGINT)
        run.wait(1)  # The first one ends the run.
        os.killpg(run.process.pid, signal.SIGINT)
        output, _ = run.process.communicate(timeout=LONG)
    assert run.process.returncode == 2, output
    assert "Traceback" not in output
    assert "this run ends at once" in output


ENDS_LATER = """
def pytest_sessionfinish():
    with open("begun", "w") as pipe:
        pipe.write("x")
    with open("go") as pipe:
        pipe.read(1)
"""


@pytest.mark.parametrize(
    ("command", "number"),
    [(PYTEST, signal.SIGTERM), (HARNESS, signal.SIGINT)],
    ids=["sigterm", "ctrl-c"],
)
def test_a_run_that_is_signalled_while_it_ends_still_has_its_summary(
    project: Project, command: tuple[str, ...], number: signal.Signals
) -> None:
    os.mkfifo(project.folder / "go")
    failing = WAITS.replace("threading.Event().wait()", "raise AssertionError('as it should')")
    with waiting(project, *command, tests=2, also=ENDS_LATER, text=failing) as run:
        run.wait(1)
        os.killpg(run.process.pid, number)
        # Opened for reading as well: the run may have ended.
        os.write(go := os.open(project.folder / "go", os.O_RDWR), b"x")
        output, _ = run.process.communicate(timeout=LONG)
        os.close(go)
    assert run.process.returncode == 1, output
    assert "2 failed" in output
    assert not {"Traceback", "Terminated", "KeyboardInterrupt"} & set(output.split()), output
    assert ("Ctrl-C again ends it at once" in output) is (number == signal.SIGINT)
    assert [each["verdict"] for each in results(project)["tests"]] == ["product", "product"]


FAILS_ONCE = """
import threading
from pathlib import Path

def test_it(lab):
    (lab.folder / "log").write_text("")
    assert Path("failed").exists()
    with open("begun", "w") as pipe:
        pipe.write("x")
    threading.Event().wait()
"""


def test_sigterm_ends_a_repetition_in_order(project: Project) -> None:
    project.write("test_it.py", FAILS_ONCE)
    assert project.pytest("-q", "--image", "micro", "--acceptance", "test_it.py").status == 1
    (bundle,) = latest(project).resolve().glob("*/bundle.tar.zst")
    project.write("failed", "")
    repro = ("-m", "harness.cli", "repro", "--anyway")
    with waiting(project, *repro, tests=1, text=FAILS_ONCE, arguments=(str(bundle),)) as run:
        run.process.send_signal(signal.SIGTERM)
        output, _ = run.process.communicate(timeout=LONG)
    assert run.process.returncode == 130, output
    assert "the repetition was interrupted" in output
    (test,) = results(project)["tests"]
    assert (test["outcome"], test["verdict"]) == ("interrupted", "infra")
