"""The pytest plugin's decisions: which scenarios run, by how many workers, and what a run amounts to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.project import Project
from harness.evidence.results import Results
from harness.host.capacity import Capacity
from harness.pytest_plugin import selection
from harness.spec import GIB

NEEDS = """
import pytest

@pytest.mark.needs({!r})
def test_it(): ...
"""


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        ("verify", "needs 'verify', which is not a capability (choose ssh, seed"),
        ("x_omaha", "a capability of your own begins with x-"),
    ],
)
def test_an_unknown_capability_is_refused(project: Project, needed: str, message: str) -> None:
    project.write("test_suite.py", NEEDS.format(needed))
    result = project.pytest("--collect-only", "-q")
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert message in result.text


def test_a_project_may_have_capabilities_of_its_own(project: Project) -> None:
    project.write("test_suite.py", NEEDS.format("x-omaha"))
    result = project.pytest("--collect-only", "-q", "--image", "micro")
    assert result.status == 0, result.text


@pytest.mark.parametrize(
    ("cpus", "memory", "wanted", "workers"),
    [(2, 24, 2, 2), (8, 64, 8, 8), (8, 8, 8, 3), (16, 64, 4, 4), (2, 3, 2, 1)],
)
def test_auto_means_as_many_workers_as_the_host_carries_machines(
    monkeypatch: pytest.MonkeyPatch, cpus: float, memory: int, wanted: int, workers: int
) -> None:
    room = Capacity(cpus, memory * GIB, memory * GIB, "host", "host")
    monkeypatch.setattr("harness.host.capacity.capacity", lambda: room)
    # In this module alone: the plugin that runs this test asks for its own session.
    engaged = SimpleNamespace(of=lambda config: SimpleNamespace(engaged=True))
    monkeypatch.setattr(selection, "sessions", engaged)
    config: Any = None
    hook = selection.pytest_xdist_auto_num_workers(config)
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(wanted)  # type: ignore[attr-defined]
    assert ended.value.value == workers


def test_auto_is_pytest_xdists_own_in_a_project_without_images(project: Project) -> None:
    project.write("test_plain.py", "def test_it(): ...\n")
    result = project.pytest("-q", "-n", "auto", "-v", PYTEST_XDIST_AUTO_NUM_WORKERS="5")
    assert result.status == 0, result.text
    assert "5 workers" in result.text


@pytest.mark.parametrize(
    ("verdicts", "status", "expected"),
    [
        ([], 0, 0),
        (["passed"], 0, 0),
        (["product"], 1, 1),
        (["test"], 1, 10),
        (["infra"], 1, 11),
        (["timeout"], 1, 12),
        (["infra", "timeout"], 1, 12),
        (["infra", "timeout", "test"], 1, 10),
        (["infra", "test", "product"], 1, 1),
        (["flaky", "passed"], 0, 0),
        (["infra", "flaky"], 1, 11),
        (["infra"], 2, 2),
        (["infra"], 3, 3),
        ([], 4, 4),
        ([], 5, 5),
    ],
)
def test_the_exit_status_names_the_weightiest_verdict(
    verdicts: list[str], status: int, expected: int
) -> None:
    results = Results()
    for number, verdict in enumerate(verdicts):
        results.test(f"test_{number}").verdict = verdict
    assert results.status(status) == expected


OUTCOMES = """
import pytest

from harness import errors

def test_passes(): ...

def test_product():
    assert 1 == 2

def test_timeout():
    raise errors.WaitTimeoutError("a prompt", 1.0)

def test_skipped():
    pytest.skip("no such disk")
"""


def test_results_json_has_each_test_with_its_verdict(project: Project) -> None:
    import json

    project.write("test_suite.py", OUTCOMES)
    result = project.pytest("-q", "--acceptance", "--image", "micro", "test_suite.py", "-n", "2")
    assert result.status == 1, result.text
    (path,) = project.folder.glob(".harness/runs/2*/results.json")
    results = json.loads(path.read_text())
    tests = {each["id"].split("::")[1]: each for each in results["tests"]}
    assert {name: each["verdict"] for name, each in tests.items()} == {
        "test_passes": "passed",
        "test_product": "product",
        "test_timeout": "timeout",
        "test_skipped": "",
    }
    assert tests["test_product"]["reason"] == "assert 1 == 2"
    assert "no such disk" in tests["test_skipped"]["reason"]
    assert set(tests["test_passes"]["seconds"]) == {"setup", "call", "teardown"}
    assert tests["test_passes"]["worker"] in ("gw0", "gw1")
    assert results["status"] == 1
    assert results["verdicts"] == {"passed": 1, "product": 1, "timeout": 1}
    assert results["image"]["name"] == "micro"


def test_plain_pytest_keeps_pytests_exit_status(project: Project) -> None:
    project.write("test_suite.py", OUTCOMES)
    result = project.pytest("-q", "--image", "micro", "-k", "timeout")
    assert result.status == 1, result.text
    result = project.pytest(
        "-q", "--image", "micro", "-k", "timeout", "--acceptance", "test_suite.py"
    )
    assert result.status == 12, result.text


def test_a_failure_inside_the_library_shows_the_tests_frames_only(project: Project) -> None:
    project.write("test_suite.py", "def test_it(lab):\n    lab.select('nothing-like-it')\n")
    result = project.pytest("-q", "--image", "micro")
    assert result.status == 1, result.text
    assert "lab.select('nothing-like-it')" in result.text
    assert "unknown image 'nothing-like-it'" in result.text
    assert "harness/lab/lab.py" not in result.text
    whole = project.pytest("-q", "--image", "micro", "--full-trace")
    assert "harness/lab/lab.py" in whole.text


def test_a_failure_below_a_module_of_python_shows_the_tests_frames_only(project: Project) -> None:
    project.write(
        "test_suite.py",
        "from harness import Lab\n\ndef test_it():\n    Lab(images=['elsewhere']).catalog\n",
    )
    project.write("elsewhere/torn/image.yaml", "name: torn\n")
    result = project.pytest("-q", "--image", "micro")
    assert result.status == 1, result.text
    assert "image.yaml:1" in result.text
    assert "functools.py" not in result.text


@pytest.mark.parametrize(("workers", "status"), [("0", 4), ("2", 2)])
def test_a_wrong_image_is_refused_once_and_with_its_fault(
    project: Project, workers: str, status: int
) -> None:
    project.write("test_suite.py", "def test_a(lab): ...\n\ndef test_b(lab): ...\n")
    project.write("images/torn/image.yaml", "name: torn\n")
    result = project.pytest("-q", "-n", workers)
    assert result.status == status, result.text
    assert result.text.count("image.yaml:1: the key 'summary' is missing") == 1
    assert "INTERNALERROR" not in result.text


def test_a_scenario_runs_with_each_seed(project: Project) -> None:
    project.write(
        "test_suite.py",
        "def test_it(fault_seed): print('seed is', fault_seed)\n\n\ndef test_other(): pass\n",
    )
    result = project.pytest("-q", "-s")
    assert (result.status, result.text.count("seed is 1")) == (0, 1), result.text
    result = project.pytest("-s", "-v", "--seeds", "3")
    assert "4 passed" in result.text
    assert [f"test_it[seed {seed}] seed is {seed}" in result.text for seed in (1, 2, 3)] == [
        True
    ] * 3
    result = project.pytest("-q", "-s", "--seed", "7")
    assert "2 passed" in result.text
    assert "seed is 7" in result.text
    result = project.pytest("-q", "--seeds", "0")
    assert (result.status, "--seeds must be at least 1" in result.text) == (4, True)
    result = project.pytest("-q", "--seeds", "2", "--seed", "7")
    assert (result.status, "exclude each other" in result.text) == (4, True)
