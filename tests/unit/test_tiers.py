"""Tiers: which tests a run takes, and what it says of the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.project import Finished, Project
from harness.pytest_plugin.tiers import TIERS, summary

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
import pytest

def test_of_each_change(): ...

@pytest.mark.tier("smoke")
def test_first(): ...

@pytest.mark.tier("nightly", cost=300, catches="a fault that is seldom seen")
def test_at_night(): ...

@pytest.mark.tier("smoke", cost=1, catches="anything")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.tier("nightly"))])
def test_some(n): ...
"""

SMOKE = ["test_first", "test_some[1]"]
GATE = ["test_of_each_change", *SMOKE]
NIGHTLY = ["test_of_each_change", "test_first", "test_at_night", "test_some[1]", "test_some[2]"]


def run(project: Project, suite: str, *options: str) -> Finished:
    project.write("test_suite.py", suite)
    return project.pytest("--image", "micro", *options)


def collected(result: Finished) -> list[str]:
    assert result.status == 0, result.text
    return [line.split("::")[1] for line in result.text.splitlines() if "::" in line]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], GATE),
        (["--tier", "smoke"], SMOKE),
        (["--tier=gate"], GATE),
        (["--tier", "nightly"], NIGHTLY),
        (["--all"], NIGHTLY),
        (["--all", "--tier", "smoke"], SMOKE),
    ],
)
def test_each_tier_has_the_tests_of_those_before_it(
    project: Project, options: list[str], names: list[str]
) -> None:
    result = run(project, SUITE, "--collect-only", "-q", "--strict-markers", *options)
    assert collected(result) == names


def test_an_unknown_tier_is_a_usage_error(project: Project) -> None:
    result = run(project, SUITE, "--tier", "fumes")
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert "argument --tier: invalid choice: 'fumes'" in result.text


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_says_how_many_tests_it_left_out(project: Project, workers: str) -> None:
    result = run(project, SUITE, "-n", workers)
    assert result.status == 0, result.text
    assert "tier gate: left out 2 of tier nightly; --tier nightly runs them as well" in result.text
    result = run(project, SUITE, "-n", workers, "--tier", "smoke")
    assert (
        "tier smoke: left out 1 of tier gate and 2 of tier nightly; --tier nightly" in result.text
    )
    assert "left out" not in run(project, SUITE, "-n", workers, "--tier", "nightly").text


def test_tests_that_are_not_selected_are_not_left_out(project: Project) -> None:
    result = run(project, SUITE, "-k", "first")
    assert result.status == 0, result.text
    assert "left out" not in result.text


def test_the_hint_names_the_smallest_tier_that_runs_them() -> None:
    assert summary("smoke", {"gate": 3}).endswith(
        "left out 3 of tier gate; --tier gate runs them as well"
    )


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ("'fumes'", "'fumes' is not a tier (choose smoke, gate, nightly)"),
        ("'gate', cost=0", "cost is a positive number of seconds, not 0"),
        ("'gate', cost='long'", "cost is a positive number of seconds, not 'long'"),
        ("'gate', uses='live'", "uses is a sequence of names, not 'live'"),
        ("'gate', other_arches='fumes'", "'fumes' is not a tier (choose smoke, gate, nightly)"),
        ("'gate', other_arches='smoke'", "other_arches is gate or a larger tier, not 'smoke'"),
        ("'gate', price=3", "tier() got an unexpected keyword argument 'price'"),
    ],
)
def test_a_malformed_mark_is_a_usage_error(project: Project, mark: str, reason: str) -> None:
    suite = f"import pytest\n\n@pytest.mark.tier({mark})\ndef test_it(): ...\n"
    result = run(project, suite)
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert f"test_suite.py::test_it: wrong marker tier: {reason}" in result.text


def test_a_project_without_images_may_mean_something_else_by_the_marker(project: Project) -> None:
    project.write("test_suite.py", "import pytest\n\n@pytest.mark.tier(1)\ndef test_it(): ...\n")
    result = project.pytest("-q")
    assert result.status == 0, result.text
    assert "1 passed" in result.text


# --- the suites ---------------------------------------------------------------------------------

LISTING = """
import json
from harness.pytest_plugin.tiers import tier_of

def pytest_collection_finish(session):
    for item in session.items:
        tier = tier_of(item)
        listed = [item.nodeid, tier.name, tier.cost, tier.catches, tier.on(other_arch=True)]
        print("scenario", json.dumps(listed))
"""


Scenario = tuple[str, str, float, str, str]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[Scenario]:
    """Each scenario of the suites: node id, tier, cost, what it alone would catch, its other tier."""
    import json

    folder = tmp_path_factory.mktemp("listing")
    (folder / "listing.py").write_text(LISTING)
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:labgrid"),
            *("-p", "listing", "-o", f"pythonpath={folder}", "--tier", "nightly", "--cuts", "1"),
            *("--image", "skiff", f"--evidence={folder}", "suites"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    lines = [
        line.split(" ", 1)[1]
        for line in process.stdout.splitlines()
        if line.startswith("scenario ")
    ]
    return [tuple(json.loads(line)) for line in lines]


def test_each_scenario_says_what_it_costs_and_what_it_alone_would_catch(
    scenarios: list[Scenario],
) -> None:
    assert len(scenarios) > 50
    assert [name for name, _, cost, catches, _ in scenarios if not (cost and catches)] == []


def test_smoke_is_one_scenario_of_each_suite(
    scenarios: list[Scenario],
) -> None:
    suites = {path.parent.name for path in (ROOT / "suites").glob("*/test_*.py")}
    smoke = [name.split("/")[1] for name, tier, *_ in scenarios if tier == TIERS[0]]
    assert sorted(smoke) == sorted(suites)


def test_smoke_is_one_scenario_on_other_architectures(scenarios: list[Scenario]) -> None:
    smoke = [name for name, *_, other in scenarios if other == TIERS[0]]
    assert [name.split("::")[1] for name in smoke] == [
        "test_a_plain_power_cut_while_the_system_writes"
    ]


def test_no_two_scenarios_alone_catch_the_same(
    scenarios: list[Scenario],
) -> None:
    caught: dict[str, set[str]] = {}
    for name, _, _, catches, _ in scenarios:
        caught.setdefault(catches, set()).add(name.split("[")[0])
    assert {text: names for text, names in caught.items() if len(names) > 1} == {}
