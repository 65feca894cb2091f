"""A job of a plan: it runs its tests alone, and leaves its results however it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Finished, Project
from harness.gate import judge
from harness.gate import plan as plans
from harness.gate.collect import collect
from harness.gate.judge import Judgement
from tests.gate_plans import a_job, a_plan, sealed

TESTS = """
import pytest

def test_one():
    pass

@pytest.mark.parametrize("way", ["a::b", "c"])
def test_two(way):
    pass

def test_other():
    assert False, "not of this job"
"""
ONE, TWO, THREE = (
    "tests/test_it.py::test_one",
    "tests/test_it.py::test_two[a::b]",
    "tests/test_it.py::test_two[c]",
)
MICRO = {"image": "micro", "arch": "x86_64", "tier": "gate"}
JOB = "micro-x86-64-1"


def planned(project: Project, *tests: str, text: str = TESTS, **facts: Any) -> plans.Plan:
    """Write a plan of one job, and the tests."""
    project.write("tests/test_it.py", text)
    plan = dataclasses.replace(a_plan(a_job(JOB, *tests, **MICRO)), **({"commit": ""} | facts))
    plan = sealed(plan)
    plans.write(plan, project.folder / "plan.json")
    return plan


def run(project: Project, *arguments: str) -> Finished:
    """Run the job of the plan."""
    command = ("-m", "harness.cli", "acceptance", "--plan", "plan.json", *arguments)
    return project.run(project.python, *command, "-p", "no:cacheprovider")


def results(project: Project) -> dict[str, Any]:
    path = project.folder / ".harness/runs/latest/results.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def judged(project: Project, plan: plans.Plan) -> Judgement:
    return judge.judge(plan, collect(project.folder / ".harness", plan))


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "workers"])
def test_a_job_runs_its_tests_alone_and_says_whose_they_are(
    project: Project, workers: tuple[str, ...]
) -> None:
    plan = planned(project, ONE, TWO)
    result = run(project, "--job", JOB, *workers)
    assert result.status == 0, result.text
    content = results(project)
    assert sorted(test["id"] for test in content["tests"]) == [ONE, TWO]
    assert content["plan"] == {"id": plan.id, "job": JOB, "attempt": 1, "commit": ""}
    assert content["image"]["name"] == "micro"
    assert judged(project, plan).verdict == "passed"


def test_the_attempt_is_that_of_the_plan_or_of_the_option(project: Project) -> None:
    planned(project, ONE, attempt=2)
    assert run(project, "--job", JOB).status == 0
    assert results(project)["plan"]["attempt"] == 2
    assert run(project, f"--job={JOB}", "--attempt=3").status == 0
    assert results(project)["plan"]["attempt"] == 3


def test_a_test_that_is_not_there_is_missed_by_the_judge(project: Project) -> None:
    plan = planned(project, ONE, "tests/test_it.py::test_gone")
    result = run(project, "--job", JOB)
    assert result.status == 0, result.text
    judgement = judged(project, plan)
    assert judgement.verdict == "infra"
    assert [test.id for test in judgement.jobs[0].tests] == ["tests/test_it.py::test_gone"]


def test_the_results_are_there_before_anything_is_collected(project: Project) -> None:
    look = (
        "import glob, shutil\nshutil.copy(*glob.glob('.harness/runs/2*/results.json'), 'early')\n"
    )
    plan = planned(project, ONE, text=look + TESTS)
    assert run(project, "--job", JOB).status == 0
    early = json.loads((project.folder / "early").read_text())
    assert (early["status"], early["tests"]) == (None, [])
    assert early["plan"] == {"id": plan.id, "job": JOB, "attempt": 1, "commit": ""}


def test_a_file_that_cannot_be_collected_is_in_the_results(project: Project) -> None:
    plan = planned(project, ONE, text="import nothing_of_this_name\n")
    assert run(project, "--job", JOB).status == 2
    (error,) = results(project)["errors"]
    assert error["id"] == "tests/test_it.py"
    assert "No module named 'nothing_of_this_name'" in error["reason"]
    judgement = judged(project, plan)
    assert (judgement.verdict, judgement.status) == ("test", 10)


WAITS = """
import os
import threading

def test_one():
    pass

def test_two(lab):
    (lab.folder / "log").write_text("")
    with open("begun", "w") as pipe:
        pipe.write(f"{os.getpid()}")
    threading.Event().wait()

def test_three():
    pass
"""


def ended_by(project: Project, number: signal.Signals, *, parent: bool) -> int:
    """Run the job until its second test waits, then end it; return its exit status."""
    os.mkfifo(project.folder / "begun")
    pipe = os.open(project.folder / "begun", os.O_RDWR)
    command = ("-m", "harness.cli", "acceptance", "--plan", "plan.json", "--job", JOB)
    with subprocess.Popen(
        [project.python, *command, "-p", "no:cacheprovider"],
        cwd=project.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            ready, _, _ = select.select([pipe], [], [], 600)
            assert ready, "the test did not begin"
            pid = int(os.read(pipe, 100))
            os.kill(process.pid if parent else pid, number)
            return process.wait(600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            os.close(pipe)


WAITING = (
    "tests/test_it.py::test_one",
    "tests/test_it.py::test_two",
    "tests/test_it.py::test_three",
)


def test_a_job_that_is_killed_leaves_what_it_knew(project: Project) -> None:
    """The kernel kills a process that takes too much memory, without a warning."""
    plan = planned(project, *WAITING, text=WAITS)
    assert ended_by(project, signal.SIGKILL, parent=False) == 11
    content = results(project)
    assert content["status"] is None
    outcomes = [(test["id"], test["outcome"]) for test in content["tests"]]
    assert outcomes == [(WAITING[0], "passed"), (WAITING[1], "interrupted")]
    judgement = judged(project, plan)
    assert (judgement.verdict, judgement.status) == ("infra", 11)
    assert judgement.jobs[0].reason.endswith(
        f"before it wrote its last results, while {WAITING[1]} ran; 2 of 3 tests not proven"
    )


def test_a_job_that_sigterm_ends_leaves_its_results_and_the_reason(project: Project) -> None:
    plan = planned(project, *WAITING, text=WAITS)
    assert ended_by(project, signal.SIGTERM, parent=True) == 2
    content = results(project)
    assert content["status"] == 2
    assert content["plan"]["id"] == plan.id
    judgement = judged(project, plan)
    assert judgement.verdict == "infra"
    assert judgement.jobs[0].reason.startswith("SIGTERM ended the run; 2 of 3 tests not proven")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--job", "micro-x86-64-2"), "unknown job 'micro-x86-64-2'"),
        ((), "harness acceptance --plan FILE --job ID"),
        (("--job", JOB, "--tier", "smoke"), "--tier smoke: the job micro-x86-64-1 has gate"),
        (("--job", JOB, "--attempt", "0"), "--attempt must be at least 1"),
        (("--job", JOB, "--plan", "none.json"), "none.json: cannot be read"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    project: Project, arguments: tuple[str, ...], words: str
) -> None:
    planned(project, ONE)
    result = run(project, *arguments)
    assert result.status == 4
    assert words in result.text
    assert not (project.folder / ".harness").exists()


def test_a_plan_of_another_commit_is_refused(project: Project, tmp_path: Path) -> None:
    planned(project, ONE, commit="b" * 40)
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example", "-C", str(project.folder))
    project.run(*git, "init", "-q")
    project.run(*git, "commit", "-q", "--allow-empty", "-m", "x")
    result = run(project, "--job", JOB)
    assert result.status == 4
    assert "the plan is of commit bbbbbbbbbbbb, and this checkout is at" in result.text
    planned(project, ONE, commit=plans.commit_of(project.folder))
    assert run(project, "--job", JOB).status == 0
    assert results(project)["plan"]["commit"] == plans.commit_of(project.folder)
