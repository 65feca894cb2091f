"""The workflows keep the policy of ``tests/workflows.py``; each of its rules catches a mutation."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.cli import _parser
from tests.workflows import FOLDER, NAMES, ROOT, Step, findings, load, steps

CHECKOUT = "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1"


def test_the_workflows_keep_the_policy() -> None:
    assert findings() == []


def test_there_are_these_workflows_and_no_others() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{name}.yml" for name in NAMES]


# file, what is there, what is put in its place, part of the finding
MUTATIONS = {
    "an unpinned action": ("pr", CHECKOUT, "actions/checkout@v7", "is not pinned by a commit"),
    "a short commit": ("pr", CHECKOUT, "actions/checkout@3d3c42e # v7.0.1", "is not pinned"),
    "a pin without its version": ("pr", " # v6.2.0", "", "names the version"),
    "two commits of an action": (
        *("nightly", CHECKOUT, f"actions/checkout@{'0' * 40} # v7.0.0"),
        "pinned to 2 commits",
    ),
    "gate: no always()": ("pr", "    if: ${{ always() }}\n", "", "`if` is not always()"),
    "gate: always() weakened": (
        *("pr", "if: ${{ always() }}", "if: ${{ !cancelled() }}"),
        "`if` is not always()",
    ),
    "judge: no always()": (
        *("acceptance", "second]\n    if: ${{ always() }}", "second]"),
        "a cancelled plan",
    ),
    "gate: a need left out": (
        "pr",
        "integration, hosted, own]",
        "hosted, own]",
        "need integration",
    ),
    "gate: a matrix": (
        *(
            "pr",
            "    name: gate\n",
            "    name: gate\n    strategy: {fail-fast: false, matrix: {a: [1]}}\n",
        ),
        "no matrix",
    ),
    "gate: another name": ("pr", "    name: gate\n", "    name: all\n", "fixed name"),
    "gate: forgiving": (
        *(
            "pr",
            "      - name: is each of them",
            "      - continue-on-error: true\n        name: is each",
        ),
        "continue-on-error makes it green",
    ),
    "gate: on an own runner": (
        *("pr", "always() }}\n    runs-on: ubuntu-24.04", "always() }}\n    runs-on: harness"),
        "'harness' is no hosted runner",
    ),
    "judge: forgiving": (
        *(
            "acceptance",
            "        id: judge\n",
            "        id: judge\n        continue-on-error: true\n",
        ),
        "continue-on-error makes it green",
    ),
    "a paths filter on the gate": (
        *("pr", "  pull_request:\n", "  pull_request:\n    paths: [images/**]\n"),
        "pending for ever",
    ),
    "no merge_group": ("pr", "  merge_group:\n", "", "merge_group is missing"),
    "a key that is empty on merge_group": (
        *("pr", " || github.event.merge_group.head_sha || github.run_id", ""),
        "is not one key for each change",
    ),
    "merge groups are cancelled": (
        *("pr", "cancel-in-progress: ${{ github.event_name == 'pull_request' }}"),
        *("cancel-in-progress: true", "must not be cancelled"),
    ),
    "pull_request_target": ("pr", "  pull_request:\n", "  pull_request_target:\n", "main's rights"),
    "workflow_run": (
        *(
            "nightly",
            "  workflow_dispatch:\n",
            "  workflow_run: {workflows: [pr]}\n  workflow_dispatch:\n",
        ),
        "workflow_run gives",
    ),
    "a secret": (
        *(
            "acceptance",
            '      ATTEMPT: "1"\n',
            '      ATTEMPT: "1"\n      KEY: ${{ secrets.KEY }}\n',
        ),
        "a secret is named",
    ),
    "all secrets": (
        *("pr", "    uses: ./.github", "    secrets: inherit\n    uses: ./.github"),
        "secrets are passed on",
    ),
    "the token in a job": (
        *(
            "acceptance",
            "      - name: run the job\n",
            '      - name: run the job\n        env: {T: "${{ github.token }}"}\n',
        ),
        "the token is passed on",
    ),
    "an expression in run": (
        "acceptance",
        '--job "$JOB"',
        "--job ${{ matrix.job }}",
        "goes by env",
    ),
    "a value without quotes": ("acceptance", '--job "$JOB"', "--job $JOB", "not one command"),
    "a script in run": ("pr", "- run: ./run type", "- run: ./run type || true", "not one command"),
    "another program": ("pr", "- run: ./run type", "- run: make type", "not one command"),
    "no timeout": ("pr", "    timeout-minutes: 10\n", "", "timeout-minutes is missing"),
    "an artifact without the attempt": (
        *("acceptance", "results-${{ env.JOB }}-${{ env.ATTEMPT }}-${{ github.run_attempt }}"),
        *("results-${{ env.JOB }}-${{ env.ATTEMPT }}", "has no run_attempt"),
    ),
    "one artifact for a matrix": (
        *("acceptance", "results-${{ env.JOB }}-", "results-"),
        "the same for each job",
    ),
    "hidden files are left out": (
        *("acceptance", "          include-hidden-files: true\n", ""),
        "include-hidden-files is not true",
    ),
    "a shallow clone": (
        "acceptance",
        "          fetch-depth: 0 # the plan",
        "          # the plan",
        "fetch-depth",
    ),
    "the token stays": ("pr", "          persist-credentials: false\n", "", "persist-credentials"),
    "another commit": (
        *("pr", "          persist-credentials: false\n"),
        *("          persist-credentials: false\n          ref: main\n", "something else than"),
    ),
    "write for all": ("pr", "permissions: {}", "permissions: write-all", "permissions are not {}"),
    "write for a job": (
        *("acceptance", "      contents: read\n", "      contents: write\n"),
        "contents: write is not allowed",
    ),
    "a job without permissions": (
        *("pr", "    timeout-minutes: 10\n    permissions:\n      contents: read\n"),
        *("    timeout-minutes: 10\n", "permissions are missing"),
    ),
    "a token that writes, on any branch": (
        *("images", "if: ${{ github.ref == 'refs/heads/main' && vars", "if: ${{ vars"),
        "runs for main alone",
    ),
    "forks on own runners": (
        *("acceptance", "github.event.pull_request.head.repo.full_name == github.repository) && "),
        *("true) && ", "does not keep forks"),
    ),
    "pull requests on own runners": (
        *("acceptance", '["merge_group", ', '["pull_request", "merge_group", '),
        "own runners for every pull request",
    ),
    "runners by the caller": (
        *("acceptance", "needs.plan.outputs.group == '' && 'ubuntu-24.04'"),
        *("inputs.group == '' && 'ubuntu-24.04'", "the job plan has decided"),
    ),
    "own runners by the change's text": (
        *("pr", "harness-os/harness/.github/workflows/acceptance.yml@main"),
        *("./.github/workflows/acceptance.yml", "another text than main's"),
    ),
    "own runners by a branch": ("pr", "acceptance.yml@main", "acceptance.yml@next", "main alone"),
    "a cache beside the runner's": (
        *("acceptance", '      ATTEMPT: "1"\n'),
        *('      ATTEMPT: "1"\n      HARNESS_CACHE: .harness/cache\n', "the warm cache"),
    ),
    "a doctor of no attempt": (
        *("acceptance", '--attempt "$ATTEMPT" --results', "--results"),
        "is this runner fit: its results do not say which attempt",
    ),
    "an empty matrix": (
        *("acceptance", "success' && needs.plan.outputs.count != '0'\n", "success'\n"),
        "an empty matrix",
    ),
    "the first red job ends all": (
        *("acceptance", "      fail-fast: false\n", ""),
        "fail-fast is not false",
    ),
    "red jobs leave nothing": (
        *("acceptance", "        if: ${{ always() }}\n        with:\n          name: results-"),
        *("        with:\n          name: results-", "evidence of a red job"),
    ),
    "a lost runner is final": (
        *("acceptance", "    continue-on-error: true\n    permissions", "    permissions"),
        "a lost runner",
    ),
    "a cache in the gate": (
        *("acceptance", "      - name: run the job\n"),
        "      - uses: actions/cache@668228422ae6a00e4ad889ee87cd7109ec5666a7 # v5.0.4\n"
        "        with: {path: .harness, key: a}\n      - name: run the job\n",
        "another would trust",
    ),
    "a container": ("pr", "  unit:\n", "  unit:\n    container: fedora\n", "a container"),
    "no concurrency": ("nightly", "  group: nightly\n", "", "concurrency is missing"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name: str, tmp_path: Path) -> None:
    file, old, new, finding = MUTATIONS[name]
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{file}.yml"
    text = path.read_text()
    assert old in text, "the mutation changes nothing"
    path.write_text(text.replace(old, new, 1))
    assert any(finding in each for each in findings(tmp_path)), findings(tmp_path)


def test_a_workflow_more_is_under_the_policy(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "label.yaml").write_text(
        "on: pull_request_target\njobs: {a: {runs-on: self-hosted, steps: [{run: make}]}}\n"
    )
    faults = [each for each in findings(tmp_path) if each.startswith("label: ")]
    assert len(faults) > 5


# --- the commands of the steps ------------------------------------------------------------------

COMMANDS = [step for step in steps(load()) if step.run]


def words(step: Step) -> list[str]:
    """Return the command of a step as the shell would have it, with a word for each value."""
    filled = re.sub(r"\$\{([A-Z_]+):\+([^{}]*)\}", r"\2", step.run)
    filled = filled.replace('--attempt "$ATTEMPT"', "--attempt 1")
    filled = filled.replace('"$TIER"', "gate")
    filled = re.sub(r'"\$[A-Z_]+"', "value", filled)
    return shlex.split(filled.partition(" >> ")[0])


@pytest.mark.parametrize(
    "step", COMMANDS, ids=lambda step: f"{step.workflow}-{step.job}-{step.number}"
)
def test_the_command_of_a_step_exists(step: Step) -> None:
    command, *arguments = words(step)[1:]
    script = (ROOT / "run").read_text()
    assert re.search(rf"^  {command}\b", script, re.MULTILINE) or command == "harness"
    if command != "harness":
        return
    if importlib.util.find_spec(f"harness.cli.{arguments[0]}") is None:
        pytest.fail(f"harness has no command {arguments[0]}")
    if arguments[0] != "acceptance":  # its options are pytest's
        _parser(arguments[0]).parse_args(arguments)


def test_every_variable_of_a_command_is_in_the_environment_of_its_step() -> None:
    workflows = load()
    own = {"GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_REPOSITORY"}
    for step in COMMANDS:
        job = workflows[step.workflow]["jobs"][step.job]
        known = own | set(job.get("env", {})) | set(step.content.get("env", {}))
        used = set(re.findall(r"\$\{?([A-Z_]+)", step.run))
        assert used <= known, f"{step.workflow}: {step.job}: {used - known} is not set"


def test_dependabot_keeps_the_pins_fresh() -> None:
    config = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())
    assert [each["package-ecosystem"] for each in config["updates"]] == ["github-actions"]


# --- ./run needs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complaints() -> Callable[..., list[str]]:
    spec = importlib.util.spec_from_file_location("needs", ROOT / ".ci" / "needs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.complaints  # type: ignore[no-any-return]


def result(value: str, **outputs: str) -> dict[str, object]:
    return {"result": value, "outputs": outputs}


JUDGED = result("success", judged="success")


@pytest.mark.parametrize(
    ("needs", "finding"),
    [
        (
            {"checks": result("failure"), "hosted": JUDGED, "own": result("skipped")},
            "checks: failure",
        ),
        (
            {"checks": result("skipped"), "hosted": JUDGED, "own": result("skipped")},
            "checks: skipped",
        ),
        ({"checks": result("cancelled"), "hosted": JUDGED, "own": result("skipped")}, "cancelled"),
        (
            {"checks": result("success"), "hosted": result("skipped"), "own": result("skipped")},
            "0 did",
        ),
        ({"checks": result("success"), "hosted": JUDGED, "own": JUDGED}, "2 did"),
        ({"checks": result("success"), "hosted": JUDGED, "own": result("failure")}, "own: failure"),
        (
            {"checks": result("success"), "hosted": result("cancelled"), "own": JUDGED},
            "hosted: canc",
        ),
        (
            {"checks": result("success"), "hosted": result("success"), "own": result("skipped")},
            "judged",
        ),
        ({"checks": result("success"), "hosted": JUDGED}, "own: the gate does not need it"),
        ({"checks": {}, "hosted": JUDGED, "own": result("skipped")}, "checks: no result"),
        (
            {
                "checks": result("success"),
                "hosted": JUDGED,
                "own": result("skipped"),
                "new": JUDGED,
            },
            "new: no rule names it",
        ),
    ],
)
def test_needs_that_are_not_proven(
    needs: dict[str, object], finding: str, complaints: Callable[..., list[str]]
) -> None:
    faults = complaints(needs, ["checks", "hosted|own:judged"])
    assert any(finding in each for each in faults), faults


@pytest.mark.parametrize("runs", ["hosted", "own"])
def test_needs_that_are_proven(runs: str, complaints: Callable[..., list[str]]) -> None:
    needs = {"checks": result("success"), "hosted": result("skipped"), "own": result("skipped")}
    assert complaints(needs | {runs: JUDGED}, ["checks", "hosted|own:judged"]) == []


def test_needs_without_rules_prove_nothing(complaints: Callable[..., list[str]]) -> None:
    assert complaints({}, []) == ["no job is named: nothing is proven"]
