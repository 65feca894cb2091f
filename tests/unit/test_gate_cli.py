"""``harness gate``: the judge of files, and a whole gate on this host, with jobs that end in any way."""

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
from harness.cli import main
from harness.gate import local
from harness.gate import plan as plans
from harness.gate.collect import collect
from harness.gate.judge import judge as judge_results
from tests.gate_plans import a_job, a_plan, sealed
from tests.programs import HEARS_HANGUPS

FOLDER = ".harness/gate/latest"
MICRO = {"image": "micro", "arch": "x86_64", "tier": "gate"}


def planned(folder: Path, *jobs: plans.Job, **facts: Any) -> plans.Plan:
    plan = sealed(dataclasses.replace(a_plan(*jobs, empty=facts.pop("empty", "")), commit=""))
    plans.write(plan, folder / "plan.json")
    return plan


def put(
    folder: Path, plan: plans.Plan, job: str, *tests: tuple[str, str], attempt: int = 1
) -> None:
    outcome = {"passed": "passed"}
    content = {
        "format": 2,
        "seconds": 1.0,
        "status": {"passed": 0, "product": 1, "infra": 11}[tests[-1][1]],
        "plan": {"id": plan.id, "job": job, "attempt": attempt, "commit": ""},
        "tests": [
            {"id": test, "outcome": outcome.get(verdict, "failed"), "verdict": verdict}
            for test, verdict in tests
        ],
    }
    path = folder / "results" / f"{job}-{attempt}" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


# --- to judge ---------------------------------------------------------------------------------


def judge(folder: Path, *arguments: str) -> int:
    return main(["gate", str(folder / "plan.json"), str(folder / "results"), *arguments])


def test_the_exit_status_is_the_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, a_job("kite-1", "t1"), a_job("kite-2", "t2"))
    put(tmp_path, plan, "kite-1", ("t1", "passed"))
    assert judge(tmp_path) == 11
    put(tmp_path, plan, "kite-2", ("t2", "passed"))
    assert judge(tmp_path) == 0
    put(tmp_path, plan, "kite-2", ("t2", "product"), attempt=2)
    assert judge(tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("gate: product: 2 jobs: 1 product")


def test_the_plan_of_the_second_attempt_has_the_infra_jobs(tmp_path: Path) -> None:
    plan = planned(tmp_path, a_job("kite-1", "t1"), a_job("kite-2", "t2"), a_job("kite-3", "t3"))
    put(tmp_path, plan, "kite-1", ("t1", "passed"))
    put(tmp_path, plan, "kite-2", ("t2", "infra"))
    file = tmp_path / "new" / "plan.json"
    assert judge(tmp_path, "--rerun", str(file)) == 11
    again = plans.read(file)
    assert [job.id for job in again.jobs] == ["kite-2", "kite-3"]
    assert (again.id, again.attempt) == (plan.id, 2)
    put(tmp_path, plan, "kite-2", ("t2", "passed"), attempt=2)
    put(tmp_path, plan, "kite-3", ("t3", "passed"), attempt=2)
    assert judge(tmp_path, "--rerun", str(file)) == 0
    assert plans.read(file).jobs == ()


def test_the_summary_is_appended_and_annotations_follow_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, a_job("kite-1", "t1"))
    put(tmp_path, plan, "kite-1", ("t1", "product"))
    (tmp_path / "summary.md").write_text("before\n")
    assert judge(tmp_path, "--summary", str(tmp_path / "summary.md"), "--annotations") == 1
    assert (
        (tmp_path / "summary.md").read_text().startswith("before\n## \N{CROSS MARK} Gate: product")
    )
    output = capsys.readouterr().out.splitlines()
    assert output[-2].startswith("gate: product")
    assert output[-1].startswith("::error file=t1,")


def test_the_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, a_job("kite-1", "t1"))
    put(tmp_path, plan, "kite-1", ("t1", "product"))
    assert judge(tmp_path, "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["plan"], content["verdict"], content["status"]) == (plan.id, "product", 1)
    assert content["jobs"][0]["tests"][0]["id"] == "t1"
    assert content["jobs"][0]["results"] == ["kite-1-1/results.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 1}'])
def test_a_planner_that_failed_is_infra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    assert judge(tmp_path, "--summary", str(tmp_path / "summary.md")) == 11
    assert "there is no plan to judge" in capsys.readouterr().out
    assert "Gate: infra" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(("reason", "status"), [("only docs changed", 0), ("", 11)])
def test_an_empty_plan_is_green_if_it_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str, status: int
) -> None:
    planned(tmp_path, empty=reason)
    assert judge(tmp_path) == status
    assert (reason or "does not say why") in capsys.readouterr().out


def test_a_plan_without_results_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path, a_job("kite-1", "t1"))
    assert main(["gate", str(tmp_path / "plan.json")]) == 2
    assert "the folder of results is missing" in capsys.readouterr().err


# --- a whole gate -----------------------------------------------------------------------------

TESTS = """
import os, signal, threading
from pathlib import Path

def test_passes():
    pass

def test_is_killed_once():
    if not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)

def test_fails():
    Path("failed").open("a").write("x")
    assert False

def test_waits():
    with open("begun", "w") as pipe:
        pipe.write("x")
    threading.Event().wait()
"""


def gate(
    project: Project, *tests: str, arguments: tuple[str, ...] = (), errors: str = "/dev/stdout"
) -> Finished:
    """Run a gate of a job for each test; its standard error goes into a file of its own, if named."""
    project.write("test_it.py", TESTS)
    jobs = [a_job(f"job-{test}", f"test_it.py::test_{test}", **MICRO) for test in tests]
    planned(project.folder, *jobs)
    command = (project.python, "-m", "harness.cli", "gate", "--plan", "plan.json", *arguments)
    script = f'exec "$@" 2>{errors}'
    return project.run("sh", "-c", script, "sh", *command, "--pytest", "-p no:cacheprovider")


def test_a_job_that_was_killed_runs_once_more_and_is_counted(project: Project) -> None:
    result = gate(project, "passes", "is_killed_once", arguments=("--json",), errors="errors")
    errors = (project.folder / "errors").read_text()
    assert result.status == 0, errors
    judgement = json.loads(result.text)
    assert judgement["counts"] == {"flaky-infra": 1, "passed": 1}
    (job, other) = judgement["jobs"]
    assert (job["id"], job["attempts"], other["attempts"]) == ("job-is_killed_once", [1, 2], [1])
    assert "while test_it.py::test_is_killed_once ran" in job["reason"]
    assert "1 of 2 jobs were infra and run once more" in errors
    for name in ("plan.json", "rerun.json", "report.html"):
        assert (project.folder / FOLDER / name).is_file()
    # The judge of files comes to the same.
    again = project.run(
        *(project.python, "-m", "harness.cli", "gate", f"{FOLDER}/plan.json", f"{FOLDER}/results"),
        "--json",
    )
    assert json.loads(again.text) == judgement


def test_a_failure_by_the_image_is_not_run_again(project: Project) -> None:
    result = gate(project, "fails", "passes")
    assert result.status == 1, result.text
    assert (project.folder / "failed").read_text() == "x"
    assert "product  test_it.py::test_fails" in result.text


def test_an_empty_plan_runs_nothing_and_says_why(project: Project) -> None:
    planned(project.folder, empty="only docs changed")
    result = project.run(project.python, "-m", "harness.cli", "gate", "--plan", "plan.json")
    assert result.status == 0, result.text
    assert "gate: passed: nothing to do: only docs changed" in result.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_job_and_the_partial_outcome_is_judged(
    project: Project, number: signal.Signals
) -> None:
    project.write("test_it.py", TESTS)
    names = ("passes", "waits", "fails")
    jobs = [a_job(f"job-{test}", f"test_it.py::test_{test}", **MICRO) for test in names]
    planned(project.folder, *jobs)
    os.mkfifo(project.folder / "begun")
    pipe = os.open(project.folder / "begun", os.O_RDWR)
    with subprocess.Popen(
        [*HEARS_HANGUPS, project.python, "-m", "harness.cli", "gate", "--plan", "plan.json"],
        cwd=project.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            ready, _, _ = select.select([pipe], [], [], 600)
            assert ready, "the test did not begin"
            process.send_signal(number)
            output, _ = process.communicate(timeout=600)
        finally:
            process.kill()
            os.close(pipe)
    assert process.returncode == 2, output
    assert "job 2 of 3" in output
    assert "job 3 of 3" not in output, "no further job begins"
    assert "run once more" not in output
    assert not (project.folder / "failed").exists()
    lines = output.splitlines()
    rows = dict(line.split()[:2] for line in lines if line.startswith("job-") and line[-1] != ":")
    assert rows == {"job-passes": "passed", "job-waits": "infra", "job-fails": "infra"}
    reason = "Ctrl-C" if number == signal.SIGINT else f"{number.name} ended the run"
    assert any(line.startswith("job-waits") and reason in line for line in lines), output
    assert f"{number.name} ended the gate" in output
    assert (project.folder / FOLDER / "report.html").is_file()


def test_a_job_that_takes_too_long_is_ended_and_is_infra(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("test_it.py", TESTS)
    os.mkfifo(project.folder / "begun")
    pipe = os.open(project.folder / "begun", os.O_RDWR)
    facts = MICRO | {"timeout_minutes": 100}
    jobs = [
        a_job(f"job-{name}", f"test_it.py::test_{name}", **facts) for name in ("waits", "passes")
    ]
    plan = planned(project.folder, *jobs)
    monkeypatch.chdir(project.folder)
    # The first job gets no time once its test waits; the second one gets all that it needs.
    limited = iter([True, False])
    ended = local._ended

    def ended_in_time(pid: int, seconds: float) -> bool:
        if next(limited):
            assert os.read(pipe, 1) == b"x"
            return False
        return ended(pid, seconds)

    monkeypatch.setattr(local, "_ended", ended_in_time)
    said: list[str] = []
    with local.Jobs(Path("results"), say=said.append) as runner:
        runner.run(plan, Path("plan.json"))
    os.close(pipe)
    assert "job job-waits took more than 100 minutes: ending it" in said
    judgement = judge_results(plan, collect(Path("results"), plan))
    assert {each.job.id: each.verdict for each in judgement.jobs} == {
        "job-waits": "infra",
        "job-passes": "passed",
    }


def test_a_wait_for_a_process_ends_with_it_or_with_its_time() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert not local._ended(process.pid, 0.01)
        process.kill()
        assert local._ended(process.pid, 1000)


def test_options_for_a_new_plan_are_refused_beside_a_plan(project: Project) -> None:
    result = gate(project, "passes", arguments=("--changed-since", "HEAD"))
    assert result.status == 2
    assert "--changed-since is for a new one" in result.text
