"""The workflows from start to end, in act: planted outcomes, and the verdict that each has to have.

act runs them on this host, offline and without Docker. Every ``run:`` is executed as it is written; what
is planted is below it: ``./run`` of the copied checkout is ``actions/run.py``, and the actions of GitHub
are those of the folder ``actions``. The judge is Harness' own.

act 0.2.89 is not GitHub. It knows no concurrency, no permissions and no ``continue-on-error`` of jobs.
All jobs of a matrix share one status. It ends when a called workflow is red, so that a gate which needs
it does not start; there, the gate's step is run here as it is written, by the ``needs`` that GitHub
would give it (docs.github.com, "Contexts reference", ``needs``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.gate.plan import dump
from tests.gate.tools import ACT, go_tool
from tests.gate_plans import a_job, a_plan, sealed
from tests.programs import needs
from tests.workflows import FOLDER, REPOSITORY, ROOT, Step, load, steps

ACTIONS = Path(__file__).parent / "actions"
STUBS = {
    "actions/cache": "cache",
    "actions/deploy-pages": "nothing",
    "actions/download-artifact": "download",
    "actions/setup-python": "nothing",
    "actions/upload-artifact": "upload",
    "actions/upload-pages-artifact": "nothing",
}
COMMIT = "a" * 40
TEST = "suites/boot/test_live.py::test_no_unit_has_failed"
FORK = {"pull_request": {"number": 7, "head": {"repo": {"full_name": "stranger/harness"}}}}
INSIDE = {"pull_request": {"number": 7, "head": {"repo": {"full_name": REPOSITORY}}}}
MAIN = {"ref": "refs/heads/main"}

pytestmark = [needs("bash"), needs("git")]


def plan(*names: str, empty: str = "") -> dict[str, Any]:
    """Return the content of a plan with a job for each name."""
    jobs = [
        a_job(
            *(name, f"{TEST}[{name}]"),
            image="skiff",
            shard=f"{number}/{len(names)}",
            labels=("harness",),
        )
        for number, name in enumerate(names, 1)
    ]
    return dump(sealed(a_plan(*jobs, commit=COMMIT, empty=empty)))


@dataclass
class Ran:
    """What act did.

    Attributes:
        status: Its exit status.
        log: Its output.
        record: What the checkouts' ``./run`` was asked for.
        verdict: The last verdict of a judge; empty if there was none.
        reason: What it said with it.
    """

    status: int
    log: list[dict[str, Any]]
    record: list[dict[str, Any]]
    verdict: str = ""
    reason: str = ""

    @property
    def jobs(self) -> set[str]:
        """The jobs that ran a command."""
        return {entry["job"] for entry in self.record if "job" in entry}

    @property
    def attempts(self) -> list[tuple[str, int]]:
        """The jobs of the plan that ran, with their attempts."""
        return sorted((entry["of"], entry["attempt"]) for entry in self.record if "of" in entry)

    def text(self) -> str:
        """Return the messages that may say why, for a failed assertion."""
        lines = [f"{each.get('job', '')}: {each.get('msg', '').rstrip()}" for each in self.log]
        dull = ("LocalRepositoryCache", "\u2b50", "\u2705", "set-output", "Cleaning up")
        return "\n".join(line for line in lines if not any(word in line for word in dull))


class Act:
    """Runs workflows in a checkout of their own."""

    def __init__(self, folder: Path) -> None:
        self.program = go_tool(ACT)
        self.folder = folder
        self.checkout = folder / "checkout"
        (folder / "planted").mkdir()
        (folder / "planted" / "outcomes.json").write_text("{}")
        shutil.copytree(FOLDER, self.checkout / ".github" / "workflows")
        (self.checkout / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "needs.py", self.checkout / ".ci")
        script = self.checkout / "run"
        script.write_text('#!/bin/sh\nexec "$PYTHON" "$ACTIONS/run.py" "$@"\n')
        script.chmod(0o755)
        git = (
            "git",
            "-C",
            str(self.checkout),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.org",
        )
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "a"]):
            subprocess.run([*git, *words], check=True)
        url = f"https://github.com/{REPOSITORY}"
        subprocess.run([*git, "remote", "add", "origin", url], check=True)

    def environment(self, lost: str = "") -> dict[str, str]:
        return {
            "ACTIONS": str(ACTIONS),
            "ARTIFACTS": str(self.folder / "artifacts"),
            "LOST": lost,
            "PLANTED": str(self.folder / "planted"),
            "PYTHON": sys.executable,
        }

    def run(
        self,
        workflow: str,
        event: str,
        content: Mapping[str, Any],
        *,
        planned: Mapping[str, Any],
        outcomes: Mapping[str, Any] | None = None,
        lost: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a workflow.

        Args:
            workflow: The file, without its ending.
            event: What has happened.
            content: The event's payload.
            planned: The content of plan.json.
            outcomes: What happens below the steps.
            lost: A pattern of artifacts that their runner does not upload any more.
            variables: The repository's variables.
        """
        planted = self.folder / "planted"
        (planted / "plan.json").write_text(json.dumps(planned))
        (planted / "outcomes.json").write_text(json.dumps(outcomes or {}))
        (self.folder / "event.json").write_text(json.dumps(content))
        command = [
            *(str(self.program), event, "--workflows", f".github/workflows/{workflow}.yml"),
            *("--eventpath", str(self.folder / "event.json"), "--json", "--rm"),
            *("--pull=false", "--action-offline-mode", "--defaultbranch", "main"),
            *("--cache-server-path", str(self.folder / "cache")),
            *("--action-cache-path", str(self.folder / "act")),
        ]
        for label in ("ubuntu-24.04", "ubuntu-24.04-arm", "harness", "other-nodes"):
            command += ["-P", f"{label}=-self-hosted"]
        for reference in sorted(references()):
            name = reference.partition("@")[0]
            stub = STUBS.get("/".join(name.split("/")[:2]))
            if stub:
                place = ACTIONS / stub
                command += ["--local-repository", f"{reference}={place}"]
        command += ["--local-repository", f"{REPOSITORY}@main={self.checkout}"]
        for name, value in self.environment(lost).items():
            command += ["--env", f"{name}={value}"]
        for name, value in (variables or {}).items():
            command += ["--var", f"{name}={value}"]
        process = subprocess.run(
            command,
            cwd=self.checkout,
            env={**os.environ, "XDG_CACHE_HOME": str(self.folder / "xdg")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        log = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
        lines = (
            (planted / "record.jsonl").read_text().splitlines()
            if (planted / "record.jsonl").exists()
            else []
        )
        ran = Ran(process.returncode, log, [json.loads(line) for line in lines])
        ran.log.append({"msg": process.stderr})
        text = "\n".join(str(each.get("msg")) for each in log)
        for verdict, reason in re.findall(r"^gate: ([a-z-]+): (.*)$", text, re.MULTILINE):
            ran.verdict, ran.reason = verdict, reason
        return ran

    def gate(self, results: Mapping[str, dict[str, Any]]) -> int:
        """Run the step of the gate as it is written, and return its exit status."""
        (step,) = [each for each in steps(load()) if each.job == "gate" and each.run]
        process = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.run],
            cwd=self.checkout,
            env={
                **os.environ,
                **self.environment(),
                "NEEDS": json.dumps(results),
                "GITHUB_WORKFLOW": "pr",
                "GITHUB_JOB": "gate",
            },
            check=False,
        )
        return process.returncode


def references() -> set[str]:
    """Return each action of the workflows with its commit; of a repository's parts, the repository."""
    actions = set()
    for step in steps(load()):
        if uses := str(step.content.get("uses", "")):
            name, _, version = uses.partition("@")
            actions.add(f"{'/'.join(name.split('/')[:2])}@{version}")
    return actions


def matches(step: Step, words: str) -> bool:
    """Return whether these are the words of a command, once its variables have values."""
    pattern = re.escape(step.run.removeprefix("./run ").partition(" >> ")[0].replace("'", ""))
    pattern = re.sub(r"\\\$\\\{[A-Z_]+:\\\+.*?\\\}", ".*", pattern)
    pattern = re.sub(r'"?\\\$[A-Z_]+"?', r"\\S*", pattern).replace(r"\ .*", r"(?:\ .*)?")
    return re.fullmatch(pattern.replace('"', ""), words) is not None


SUCCESS = {"result": "success", "outputs": {}}
SKIPPED = {"result": "skipped", "outputs": {}}
OWN = {"HARNESS_RUNNER_GROUP": "harness", "HARNESS_SECOND_LABEL": "other-nodes"}


def case(workflow: str = "pr", *jobs: str, **facts: Any) -> dict[str, Any]:
    """Return the arguments of :meth:`Act.run`: by default, a pull request of a fork with two jobs."""
    events = {"pr": ("pull_request", FORK), "nightly": ("schedule", MAIN), "images": ("push", MAIN)}
    event, content = events[workflow]
    known = {"workflow": workflow, "event": event, "content": content}
    return known | {"planned": plan(*(jobs or ("a", "b")))} | facts


def outcomes(**jobs: dict[str, str]) -> dict[str, Any]:
    """Return what becomes of jobs, by the number of the attempt; the others pass."""
    return {"jobs": jobs}


CASES: dict[str, dict[str, Any]] = {
    "all green": case(),
    "one red": case(outcomes=outcomes(b={"1": "product"})),
    "planner red": case(outcomes={"plan": 3}),
    # Twice, so that the second attempt does not mend it.
    "job cancelled": case(outcomes=outcomes(b={"1": "killed", "2": "killed"})),
    "empty with a reason": case(planned=plan(empty="only docs/ changed")),
    "empty without a reason": case(planned=plan(empty="x") | {"empty": ""}),
    "results removed": case(outcomes=outcomes(b={"1": "removed", "2": "removed"})),
    "runner lost": case(lost="results-b-1-*"),
    "two attempts": case(outcomes=outcomes(b={"1": "infra"})),
    "own runners": case(
        "pr", "a", content=INSIDE, variables=OWN, outcomes=outcomes(a={"1": "infra"})
    ),
    "fork, own runners": case("pr", "a", variables=OWN),
    "green night": case("nightly"),
    "red night": case("nightly", outcomes=outcomes(a={"1": "product"})),
    "images": case("images", variables={"HARNESS_REGISTRY": "registry.example/kite/runner"}),
    "images of a branch": case("images", content={"ref": "refs/heads/next"}),
}


class Cases:
    """Runs each case once, whichever test asks first."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._runs: dict[str, tuple[Act, Ran]] = {}

    def __call__(self, name: str) -> Ran:
        """Return what act did in a case."""
        if name not in self._runs:
            act = self.act()
            self._runs[name] = act, act.run(**CASES[name])
        return self._runs[name][1]

    def artifacts(self, name: str) -> set[str]:
        """Return the names of the artifacts of a case."""
        return {path.name for path in (self._runs[name][0].folder / "artifacts").iterdir()}

    def act(self) -> Act:
        """Return a checkout of its own."""
        return Act(self._factory.mktemp("act"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory)


def red(ran: Ran, cases: Cases) -> None:
    """Assert that the judge is red, and the gate that GitHub would start then."""
    assert ran.status != 0, ran.text()
    checks = dict.fromkeys(("checks", "unit", "integration"), SUCCESS)
    act = cases.act()
    for result, judged, status in (
        *(("failure", "failure", 1), ("success", "failure", 1), ("failure", "", 1)),
        ("success", "success", 0),  # the step itself works
    ):
        hosted = {"result": result, "outputs": {"judged": judged}}
        assert act.gate({**checks, "hosted": hosted, "own": SKIPPED}) == status


# --- pull requests ------------------------------------------------------------------------------


def test_all_green(cases: Cases) -> None:
    ran = cases("all green")
    assert (ran.status, ran.verdict) == (0, "passed"), ran.text()
    assert ran.attempts == [("a", 1), ("b", 1)]
    assert {"checks", "unit", "integration", "plan", "first", "again", "judge", "gate"} == ran.jobs
    assert cases.artifacts("all green") == {
        *("plan-1", "again-1", "report-1", "results-a-1-1", "results-b-1-1"),
    }


def test_one_red(cases: Cases) -> None:
    ran = cases("one red")
    assert ran.verdict == "product", ran.text()
    assert ran.attempts == [("a", 1), ("b", 1)], "what is red is not tried again"
    red(ran, cases)


def test_a_red_planner(cases: Cases) -> None:
    ran = cases("planner red")
    assert ran.verdict == "infra", ran.text()
    assert ran.attempts == []
    red(ran, cases)


def test_a_job_is_cancelled(cases: Cases) -> None:
    ran = cases("job cancelled")
    assert ran.verdict == "infra", ran.text()
    assert ran.attempts == [("a", 1), ("b", 1), ("b", 2)]
    red(ran, cases)


def test_an_empty_plan_with_a_reason(cases: Cases) -> None:
    ran = cases("empty with a reason")
    assert ran.status == 0, ran.text()
    assert "only docs/ changed" in ran.reason
    assert ran.attempts == []
    assert "gate" in ran.jobs and "first" not in ran.jobs


def test_an_empty_plan_without_a_reason(cases: Cases) -> None:
    ran = cases("empty without a reason")
    assert ran.verdict == "infra", ran.text()
    red(ran, cases)


def test_the_results_are_removed(cases: Cases) -> None:
    ran = cases("results removed")
    assert ran.verdict == "infra", ran.text()
    assert ran.attempts == [("a", 1), ("b", 1), ("b", 2)]
    red(ran, cases)


def test_a_runner_is_lost_and_the_second_attempt_passes(cases: Cases) -> None:
    """It uploads nothing, and its job is red. (act ends there; the judge has spoken before.)"""
    ran = cases("runner lost")
    assert (ran.verdict, "1 flaky-infra" in ran.reason) == ("passed", True), ran.text()
    assert ran.attempts == [("a", 1), ("b", 1), ("b", 2)]


def test_two_attempts(cases: Cases) -> None:
    ran = cases("two attempts")
    assert (ran.status, ran.verdict) == (0, "passed"), ran.text()
    assert "1 flaky-infra" in ran.reason
    assert ran.attempts == [("a", 1), ("b", 1), ("b", 2)]
    assert "gate" in ran.jobs


def test_own_runners(cases: Cases) -> None:
    """A branch of the repository gets them by main's text, and images that a hosted runner built."""
    ran = cases("own runners")
    assert (ran.status, ran.verdict) == (0, "passed"), ran.text()
    assert "1 flaky-infra" in ran.reason
    assert [entry["images"] for entry in ran.record if "of" in entry] == [True, True]
    assert any(
        entry.get("words", [])[:3] == ["harness", "doctor", "--gate"] for entry in ran.record
    )


def doctors(ran: Ran) -> int:
    """Return how often a job has begun on an own runner."""
    return sum(entry.get("words", [])[:2] == ["harness", "doctor"] for entry in ran.record)


def test_a_fork_gets_no_own_runner(cases: Cases) -> None:
    ran = cases("fork, own runners")
    assert (ran.status, ran.attempts, doctors(ran)) == (0, [("a", 1)], 0), ran.text()


def test_a_fork_whose_workflow_asks_for_own_runners_gets_none(cases: Cases) -> None:
    """It calls main's acceptance.yml with the group, whatever pr.yml says upstream."""
    act = cases.act()
    path = act.checkout / ".github" / "workflows" / "pr.yml"
    text = path.read_text()
    hostile = re.sub(r"(  own:\n)    if: >-\n(?:      .*\n)+", r"\1", text)
    hostile = re.sub(r"(  hosted:\n)    if: >-\n(?:      .*\n)+", r"\1    if: false\n", hostile)
    assert hostile.count("if: >-") == text.count("if: >-") - 2
    path.write_text(hostile)
    ran = act.run(**CASES["fork, own runners"])
    assert (ran.attempts, doctors(ran)) == ([("a", 1)], 0), ran.text()


# --- nights, and images -------------------------------------------------------------------------


def test_a_green_night(cases: Cases) -> None:
    ran = cases("green night")
    assert (ran.status, ran.verdict) == (0, "passed"), ran.text()
    assert {"history", "issues"} <= ran.jobs
    assert "history-1" in cases.artifacts("green night")


def test_a_red_night(cases: Cases) -> None:
    ran = cases("red night")
    assert (ran.status != 0, ran.verdict) == (True, "product"), ran.text()


def test_images(cases: Cases) -> None:
    ran = cases("images")
    assert ran.status == 0, ran.text()
    assert ran.jobs == {"images", "runner"}
    assert cases.artifacts("images") == {"images-x86_64-1", "images-aarch64-1"}


def test_images_of_a_branch_are_not_built(cases: Cases) -> None:
    ran = cases("images of a branch")
    assert (ran.status, ran.record) == (0, []), ran.text()


# --- all of it ----------------------------------------------------------------------------------


def test_every_command_has_been_executed(cases: Cases) -> None:
    """Of each workflow, as it is written."""
    seen = {
        (entry["job"], " ".join(entry["words"]))
        for name in ("all green", "two attempts", "own runners", "green night", "images")
        for entry in cases(name).record
        if "words" in entry
    }
    commands = [step for step in steps(load()) if step.run]
    assert len(commands) > 25
    left = [
        f"{step.workflow}: {step.job}: {step.run}"
        for step in commands
        if not any(job == step.job and matches(step, words) for job, words in seen)
    ]
    assert left == []
