"""The workflows of ``.github``, and the policy that they keep.

:func:`findings` is the policy; each finding names the file and the job. What it is for, and GitHub's
rules behind it, is in ``docs/explanation/threats.md``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github" / "workflows"
NAMES = ("acceptance", "images", "nightly", "pr")
REPOSITORY = "harness-os/harness"
"""Whose ``acceptance.yml`` pr.yml calls by ``@main``; a copy writes its own name there."""

HOSTED = ("ubuntu-24.04", "ubuntu-24.04-arm", "${{ matrix.host }}")
FORBIDDEN = ("pull_request_target", "workflow_run", "issue_comment")
"""Events that run main's text with main's rights, for a stranger. (securitylab.github.com, "Preventing
pwn requests".)"""

WRITES: Mapping[tuple[str, str], dict[str, str]] = {
    ("images", "runner"): {"packages": "write"},
    ("nightly", "issues"): {"issues": "write"},
    ("nightly", "page"): {"pages": "write", "id-token": "write"},
}
"""The jobs that may do more than read the repository."""

TOKENS = (("images", "runner"), ("nightly", "issues"))
_PIN = re.compile(r"uses: *(\S+)@(\S+)(?: +# (.*))?$", re.MULTILINE)
_COMMAND = re.compile(
    r"""\./run\ [a-z-]+
        (?:\ (?: "\$[A-Z_]+(?:-\$[A-Z_]+)?"
                | \$\{[A-Z_]+:\+[^{}`$]*(?:"\$[A-Z_]+")?\}
                | '[a-z|:]+'
                | [\w./=-]+ ))*
        (?:\ >>\ "\$GITHUB_(?:OUTPUT|STEP_SUMMARY)")?""",
    re.VERBOSE,
)
"""One command of ``./run``; values come by ``env``, and a value has quotes."""

_GROUP = re.compile(
    r"\(contains\(fromJSON\('\[(?P<events>[^\]]*)\]'\), github\.event_name\)\s*\|\|\s*"
    r"github\.event\.pull_request\.head\.repo\.full_name == github\.repository\)\s*"
    r"&& inputs\.group \|\| ''"
)


@dataclass(frozen=True)
class Step:
    """A step of a job.

    Attributes:
        workflow: The name of the file, without its ending.
        job: The key of the job.
        number: Its place, from 1.
        content: What the file says.
    """

    workflow: str
    job: str
    number: int
    content: dict[str, Any]

    @property
    def run(self) -> str:
        """The command; empty for an action."""
        return str(self.content.get("run", "")).strip()

    @property
    def action(self) -> str:
        """The action without its version; empty for a command."""
        return str(self.content.get("uses", "")).partition("@")[0]


def load(folder: Path = FOLDER) -> dict[str, dict[Any, Any]]:
    """Return the content of each workflow, by the name of its file without the ending."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.y*ml"))}


def triggers(workflow: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the events of a workflow. (YAML 1.1 takes the key ``on`` for true.)"""
    events = workflow.get("on", workflow.get(True))
    if isinstance(events, str):
        return {events: None}
    if isinstance(events, list):
        return dict.fromkeys(events)
    return dict(events or {})


def steps(workflows: Mapping[str, Mapping[Any, Any]]) -> Iterator[Step]:
    """Yield each step of each job."""
    for name, workflow in workflows.items():
        for key, job in workflow["jobs"].items():
            for number, content in enumerate(job.get("steps", ()), 1):
                yield Step(name, key, number, content)


def findings(folder: Path = FOLDER) -> list[str]:
    """Return what is against the policy."""
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.y*ml"))}
    workflows = load(folder)
    faults = [f"{name}: the workflow is missing" for name in NAMES if name not in workflows]
    faults += _pins(texts)
    for name, workflow in workflows.items():
        faults += [f"{name}: {each}" for each in _workflow(name, workflow, texts[name])]
        for key, job in workflow["jobs"].items():
            faults += [f"{name}: {key}: {each}" for each in _job(name, key, job)]
    for step in steps(workflows):
        place = f"{step.workflow}: {step.job}: step {step.number}"
        faults += [f"{place}: {each}" for each in _step(step, workflows[step.workflow]["jobs"])]
    if "pr" in workflows:
        faults += [f"pr: {each}" for each in _gate(workflows["pr"])]
    if "acceptance" in workflows:
        faults += [f"acceptance: {each}" for each in _judge(workflows["acceptance"])]
    return faults


def _pins(texts: Mapping[str, str]) -> Iterator[str]:
    versions: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for name, text in texts.items():
        for action, version, comment in _PIN.findall(text):
            if action == f"{REPOSITORY}/.github/workflows/acceptance.yml":
                if version != "main":
                    yield f"{name}: {action} is called by {version}: the runner group admits main alone"
            elif not re.fullmatch(r"[0-9a-f]{40}", version):
                yield f"{name}: {action}@{version} is not pinned by a commit"
            elif not re.match(r"v\d+\.\d+\.\d+$", comment):
                yield f"{name}: {action}: a comment names the version of the commit"
            # One release of one repository, whichever of its actions is used.
            versions["/".join(action.split("/")[:2])].add((version, comment))
    for action, each in versions.items():
        if len(each) > 1:
            yield f"{action} is pinned to {len(each)} commits: {sorted(each)}"


def _workflow(name: str, workflow: Mapping[Any, Any], text: str) -> Iterator[str]:
    events = triggers(workflow)
    for event in FORBIDDEN:
        if event in events:
            yield f"{event} gives a stranger main's rights"
    if workflow.get("permissions") != {}:
        yield "the workflow's permissions are not {}: each job names its own"
    if re.search(r"\bsecrets\b", text):
        yield "a secret is named: no job needs one"
    if "workflow_call" in events:
        if set(events) != {"workflow_call"}:
            yield "a reusable workflow has another trigger"
        return
    concurrency = workflow.get("concurrency") or {}
    if not concurrency.get("group"):
        yield "concurrency is missing"
    for event in ("pull_request", "merge_group"):
        for key in events.get(event) or {}:
            if "paths" in key or "branches" in key:
                yield f"{key} of {event}: a check that does not start is pending for ever"


def _job(name: str, key: str, job: Mapping[str, Any]) -> Iterator[str]:
    allowed = {"contents": "read", **WRITES.get((name, key), {})}
    permissions = job.get("permissions")
    if not isinstance(permissions, dict):
        yield "permissions are missing"
    else:
        for right, value in permissions.items():
            if allowed.get(right) != value:
                yield f"the permission {right}: {value} is not allowed"
        if "write" in permissions.values() and "refs/heads/main" not in _guard(name, key, job):
            yield "a job that may write runs for main alone"
    if "secrets" in job:
        yield "secrets are passed on"
    if "uses" in job:
        if not str(job["uses"]).endswith(("/acceptance.yml", "/acceptance.yml@main")):
            yield f"{job['uses']} is no workflow of this project"
        return
    if not job.get("timeout-minutes"):
        yield "timeout-minutes is missing: the default is six hours"
    if "container" in job or "services" in job:
        yield "a container: nobody pins it, and act cannot run it without Docker"
    strategy = job.get("strategy")
    if strategy and strategy.get("fail-fast") is not False:
        yield "fail-fast is not false: one red job would cancel the others' evidence"
    runner = str(job.get("runs-on", ""))
    if name == "acceptance" and key in ("first", "second"):
        if "needs.plan.outputs.group == '' && 'ubuntu-24.04'" not in runner:
            yield "the runners are not those that the job plan has decided"
        environments = [job, *job.get("steps", ())]
        if any("HARNESS_CACHE" in (each.get("env") or {}) for each in environments):
            yield "HARNESS_CACHE is set: the warm cache of an own runner is not used"
    elif runner not in HOSTED:
        yield f"{runner!r} is no hosted runner of a fixed version"


def _guard(name: str, key: str, job: Mapping[str, Any]) -> str:
    """Return the condition of a job, and that of the job which it needs to have succeeded."""
    condition = str(job.get("if", ""))
    if (name, key) == ("nightly", "page") and "needs.history.result == 'success'" in condition:
        return "refs/heads/main: the job history runs for main alone"
    return condition


def _step(step: Step, jobs: Mapping[str, Any]) -> Iterator[str]:
    values = step.content.get("with") or {}
    if step.run:
        if "${{" in step.run:
            yield "an expression in `run`: a value goes by env"
        if not _COMMAND.fullmatch(step.run):
            yield f"not one command of ./run: {step.run}"
        if "shell" in step.content:
            yield "a shell of its own"
        full = "./run lint" in step.run or "--changed-since" in step.run
        if full and not any(
            str(each.get("uses", "")).startswith("actions/checkout@")
            and (each.get("with") or {}).get("fetch-depth") == 0
            for each in jobs[step.job]["steps"][: step.number - 1]
        ):
            yield "fetch-depth is not 0: there is no base to compare with"
    if "github.token" in str(step.content) and (step.workflow, step.job) not in TOKENS:
        yield "the token is passed on"
    if step.action == "actions/checkout":
        if values.get("persist-credentials") is not False:
            yield "persist-credentials is not false: the token stays in .git/config"
        if "ref" in values or "repository" in values:
            yield "checks out something else than the event's commit"
    if step.action == "actions/upload-artifact":
        name = str(values.get("name", ""))
        job = jobs[step.job]
        if "github.run_attempt" not in name:
            yield f"the artifact {name} has no run_attempt: a second run of the job cannot upload it"
        named = name.replace("env.JOB", str((job.get("env") or {}).get("JOB", "")))
        if "strategy" in job and "matrix." not in named:
            yield f"the artifact {name} is the same for each job of the matrix"
        if (
            str(values.get("path", "")).startswith(".")
            and values.get("include-hidden-files") is not True
        ):
            yield "include-hidden-files is not true: .harness/ is left out"
    if step.action.startswith("actions/cache") and (step.workflow, step.job) != (
        "nightly",
        "history",
    ):
        yield "a cache: what one run leaves, another would trust"


def _gate(workflow: Mapping[Any, Any]) -> Iterator[str]:
    events = triggers(workflow)
    for event in ("pull_request", "merge_group"):
        if event not in events:
            yield f"{event} is missing: its changes would wait for ever"
    concurrency = workflow.get("concurrency") or {}
    group = str(concurrency.get("group", ""))
    parts = (
        *("github.event.pull_request.number", "github.event.merge_group.head_sha"),
        "github.run_id",
    )
    if f"${{{{ {' || '.join(parts)} }}}}" not in group:
        yield f"concurrency: {group} is not one key for each change"
    if concurrency.get("cancel-in-progress") != "${{ github.event_name == 'pull_request' }}":
        yield "cancel-in-progress: a merge group must not be cancelled"
    jobs = workflow["jobs"]
    gate = jobs.get("gate")
    if gate is None:
        yield "there is no job gate"
        return
    if gate.get("name", "gate") != "gate" or "strategy" in gate:
        yield "gate: the required check has a fixed name, and no matrix"
    if str(gate.get("if")) not in ("always()", "${{ always() }}"):
        yield "gate: `if` is not always(): skipped counts as success"
    if missing := set(jobs) - {"gate"} - set(gate.get("needs", ())):
        yield f"gate: does not need {', '.join(sorted(missing))}"
    if "continue-on-error" in str(gate):
        yield "gate: continue-on-error makes it green"
    if not any("NEEDS" in (each.get("env") or {}) for each in gate.get("steps", ())):
        yield "gate: does not look at the results of what it needs"
    for key, job in jobs.items():
        if "group" in (job.get("with") or {}) and not str(job.get("uses")).endswith("@main"):
            yield f"{key}: own runners by another text than main's"


def _judge(workflow: Mapping[Any, Any]) -> Iterator[str]:
    jobs = workflow["jobs"]
    for step in jobs["first"].get("steps", ()):
        command = str(step.get("run", ""))
        if '--job "$JOB"' in command and '--attempt "$ATTEMPT"' not in command:
            yield f"first: {step.get('name')}: its results do not say which attempt they are of"
    group = _GROUP.search(" ".join(str(jobs["plan"].get("outputs", {}).get("group", "")).split()))
    if group is None:
        yield "plan: the output group does not keep forks from own runners"
    elif "pull_request" in group["events"]:
        yield "plan: own runners for every pull request"
    judge = jobs.get("judge", {})
    if str(judge.get("if")) not in ("always()", "${{ always() }}"):
        yield "judge: `if` is not always(): a cancelled plan would be no verdict"
    if missing := set(jobs) - {"judge"} - set(judge.get("needs", ())):
        yield f"judge: does not need {', '.join(sorted(missing))}"
    for step in judge.get("steps", ()):
        if step.get("id") == "judge" and "continue-on-error" in step:
            yield "judge: continue-on-error makes it green"
    for key, count in (
        ("first", "needs.plan.outputs.count"),
        ("second", "needs.again.outputs.count"),
    ):
        if f"{count} != '0'" not in str(jobs.get(key, {}).get("if", "")):
            yield f"{key}: an empty matrix is an error on GitHub"
        for step in jobs.get(key, {}).get("steps", ()):
            if str(step.get("uses", "")).startswith("actions/upload-artifact@") and (
                "always()" not in str(step.get("if", ""))
            ):
                yield f"{key}: the evidence of a red job is not uploaded"
    if jobs["first"].get("steps") != jobs["second"].get("steps"):
        yield "second: other steps than first"
    if jobs["first"].get("continue-on-error") is not True:
        yield "first: a lost runner makes the run red before the second attempt"
