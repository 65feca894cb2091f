"""Second tries: ours of a failure by the host, those of other plugins, and those after a crash."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Finished, Project
from harness import errors
from harness.errors import HarnessError, Verdict, is_transient, verdict_of

COUNT = """
from pathlib import Path

import pytest

from harness import errors

def number(name):
    path = Path(name)
    path.write_text((path.read_text() if path.exists() else "") + "x")
    return len(path.read_text())

def died():
    raise errors.QemuExitedError("QEMU died")

def fails_first(name):
    if number(name) == 1:
        died()
"""

RERUNS = '''
"""Tries each test up to three times, as pytest-rerunfailures does."""

from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for count in (1, 2, 3):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        for report in reports:
            if report.failed and count < 3:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
        if not any(report.outcome == "rerun" for report in reports):
            break
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True

def pytest_report_teststatus(report):
    if report.outcome == "rerun":
        return "rerun", "r", "RERUN"
'''


def run(project: Project, text: str, *options: str) -> Finished:
    project.write("test_it.py", COUNT + text)
    return project.pytest("-q", "--image", "micro", "--acceptance", "test_it.py", *options)


def results(project: Project) -> dict[str, Any]:
    """Return the results by the function of the test."""
    content = json.loads((latest(project) / "results.json").read_text())
    return {each["id"].split("::")[1]: each for each in content["tests"]}


def latest(project: Project) -> Path:
    return project.folder / ".harness/runs/latest"


def properties(project: Project, test: str) -> list[dict[str, str]]:
    """Return the properties of each of a test's entries in junit.xml."""
    cases = (
        ET.parse(latest(project) / "junit.xml").getroot().iterfind(f".//testcase[@name='{test}']")
    )
    return [
        {each.get("name", ""): each.get("value", "") for each in case.iter("property")}
        for case in cases
    ]


FIRST = """
def test_it(lab):
    assert not list(lab.folder.iterdir())
    (lab.folder / "log").write_text("")
    fails_first("it")
"""


@pytest.mark.parametrize("options", [(), ("-n", "2"), ("-x",)], ids=["alone", "workers", "x"])
def test_a_failure_by_infra_is_tried_once_more(project: Project, options: tuple[str, ...]) -> None:
    result = run(project, FIRST + "\ndef test_good(): ...\n", *options)
    assert result.status == 0, result.text
    assert "1 passed, 1 retried, 1 flaky" in result.text
    assert "try 1: infra: harness.errors.QemuExitedError: QEMU died" in result.text
    test = results(project)["test_it"]
    assert (test["outcome"], test["verdict"]) == ("passed", "flaky")
    assert [each["verdict"] for each in test["tries"]] == ["infra", "passed"]
    first, second = (latest(project) / each["evidence"] for each in test["tries"])
    assert (first / "log").exists()
    assert (second / "log").exists()
    assert test["evidence"] == first.name
    assert properties(project, "test_it") == [
        {
            "arch": "x86_64",
            "verdict": "flaky",
            "signature": test["signature"],
            "evidence": str(first.parent.resolve() / first.name),
        }
    ]
    assert results(project)["test_good"]["tries"] == []


def test_no_retry_counts_the_first_failure(project: Project) -> None:
    result = run(project, FIRST, "--no-retry")
    assert result.status == 11, result.text
    test = results(project)["test_it"]
    assert (test["verdict"], test["tries"]) == ("infra", [])


def test_a_second_failure_by_infra_names_both_evidences(project: Project) -> None:
    result = run(project, "\ndef test_it(lab):\n    died()\n")
    assert result.status == 11, result.text
    assert "1 failed, 1 retried" in result.text
    test = results(project)["test_it"]
    assert [each["verdict"] for each in test["tries"]] == ["infra", "infra"]
    for each in test["tries"]:
        assert f"{latest(project).resolve() / each['evidence']}\n" in result.text
    assert len(properties(project, "test_it")) == 1


@pytest.mark.parametrize(
    "body",
    [
        "raise errors.QemuMissingError('none')",
        "raise errors.CancelledError('no')",
        "raise errors.UsageError('no')",
        "raise FileNotFoundError('no')",
        "raise errors.WaitTimeoutError('a prompt', 1)",
        "assert False",
        "pytest.skip('no')",
    ],
)
def test_what_a_second_try_cannot_help_is_not_tried_again(project: Project, body: str) -> None:
    run(project, f"\ndef test_it(lab):\n    number('it')\n    {body}\n")
    assert (project.folder / "it").read_text() == "x"


SHARED = """
@pytest.fixture(scope="module")
def shared(shared_lab):
    (shared_lab.folder / "log").write_text("")
    fails_first("shared")
    yield number("whole")

def test_a(shared, lab): ...

def test_b(shared, lab):
    fails_first("b")
    # Torn down, and set up anew.
    assert shared == 2

@pytest.fixture
def ends_badly():
    yield
    fails_first("end")

def test_c(ends_badly, lab): ...
"""


def test_setup_and_teardown_count_and_shared_fixtures_begin_anew(project: Project) -> None:
    result = run(project, SHARED)
    assert result.status == 0, result.text
    assert "3 retried, 3 flaky" in result.text
    assert {each["verdict"] for each in results(project).values()} == {"flaky"}
    shared = [path for path in latest(project).glob("test_it.py-*")]
    assert len(shared) == 1, "the evidence of the shared machine of a try that failed is kept"
    assert len(properties(project, "test_c")) == 1


def test_under_pdb_the_first_failure_stays(project: Project) -> None:
    result = run(project, FIRST, "--pdb")
    assert (project.folder / "it").read_text() == "x", result.text
    assert "retried" not in result.text


def test_hooks_around_a_test_run_for_each_try(project: Project) -> None:
    """As the limit of pytest-timeout does, which would be one for both tries."""
    project.write(
        "conftest.py",
        "import pytest\n"
        "from pathlib import Path\n"
        "@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtest_protocol(item):\n"
        "    with Path('around').open('a') as file:\n"
        "        file.write('x')\n"
        "    return (yield)\n",
    )
    assert run(project, FIRST).status == 0
    assert (project.folder / "around").read_text() == "xx"


def test_tries_of_other_plugins_are_kept_apart(project: Project) -> None:
    project.write("conftest.py", RERUNS)
    text = """
def test_it(lab):
    assert not list(lab.folder.iterdir())
    (lab.folder / "log").write_text("")
    assert number("it") == 3
"""
    result = run(project, text)
    assert result.status == 0, result.text
    test = results(project)["test_it"]
    assert test["verdict"] == "flaky"
    assert [each["verdict"] for each in test["tries"]] == ["product", "product", "passed"]
    folders = [latest(project) / each["evidence"] for each in test["tries"]]
    assert len(set(folders)) == 3
    assert all((folder / "log").exists() for folder in folders)
    last = properties(project, "test_it")[-1]
    assert last["verdict"] == "flaky"
    assert Path(last["evidence"]).is_dir()


def test_a_failure_by_infra_is_left_to_a_plugin_that_tries_again(project: Project) -> None:
    project.write("conftest.py", RERUNS)
    result = run(project, "\ndef test_it(lab):\n    number('it')\n    died()\n")
    assert result.status == 11, result.text
    assert (project.folder / "it").read_text() == "xxx"


CRASH = """
import os

def test_it(lab):
    (lab.folder / "log").write_text("")
    if number("it") <= TIMES:
        os._exit(3)
"""


@pytest.mark.parametrize("dist", ["load", "loadscope"])
def test_a_crash_of_a_worker_is_infra_and_tried_once_more(project: Project, dist: str) -> None:
    result = run(project, CRASH.replace("TIMES", "1"), "-n", "1", "--dist", dist)
    assert result.status == 0, result.text
    test = results(project)["test_it"]
    assert test["verdict"] == "flaky"
    assert test["tries"][0]["reason"] == "worker 'gw0' crashed while running 'test_it.py::test_it'"
    assert [(latest(project) / each["evidence"] / "log").exists() for each in test["tries"]] == [
        True,
        True,
    ]
    assert len(properties(project, "test_it")) == 1


@pytest.mark.parametrize(
    ("options", "tries"), [((), 2), (("--no-retry",), 0), (("--max-worker-restart", "0"), 0)]
)
def test_a_worker_that_crashes_always_is_infra_with_its_folder(
    project: Project, options: tuple[str, ...], tries: int
) -> None:
    result = run(project, CRASH.replace("TIMES", "9"), "-n", "1", *options)
    assert result.status == 11, result.text
    test = results(project)["test_it"]
    assert (test["verdict"], len(test["tries"])) == ("infra", tries)
    folder = latest(project) / test["evidence"]
    assert (folder / "log").exists()
    assert f"{folder.parents[0].resolve() / folder.name}\n" in result.text
    (entry,) = properties(project, "test_it")
    assert entry["verdict"] == "infra"
    assert Path(entry["evidence"]).is_dir()


def test_each_worker_has_its_own_evidence_where_all_run_each_test(project: Project) -> None:
    text = (
        "\ndef test_it(lab, shared_lab):\n    (lab.folder / 'log').write_text('')\n    assert 0\n"
    )
    result = run(project, text, "--dist", "each", "--tx", "2*popen")
    assert result.status == 1, result.text
    content = json.loads((latest(project) / "results.json").read_text())
    assert len({each["evidence"] for each in content["tests"]}) == 2
    assert [each["tries"] for each in content["tests"]] == [[], []]


def test_the_limit_of_pytest_timeout_is_a_timeout(project: Project) -> None:
    text = "\ndef test_it(lab):\n    pytest.fail('Timeout (>2.0s) from pytest-timeout.')\n"
    result = run(project, text)
    assert result.status == 12, result.text
    test = results(project)["test_it"]
    assert test["verdict"] == "timeout"
    assert (latest(project) / test["evidence"]).is_dir()


def test_an_expected_failure_has_no_verdict(project: Project) -> None:
    run(project, "\n@pytest.mark.xfail\ndef test_it(lab):\n    assert False\n")
    assert properties(project, "test_it") == [{"arch": "x86_64"}]


def test_every_error_by_infra_says_whether_a_second_try_helps() -> None:
    def all_below(kind: type[HarnessError]) -> set[type[HarnessError]]:
        return {kind}.union(*(all_below(each) for each in kind.__subclasses__()))

    ours = {each for each in all_below(HarnessError) if each.__module__ == errors.__name__}
    lasting = {each for each in ours if each.verdict is Verdict.INFRA and not each.transient}
    assert {each.__name__ for each in lasting} == {
        *("QemuMissingError", "QemuTooOldError", "FirmwareMissingError", "SnapshotError"),
        *("BuildError", "ChecksumError", "DiskFullError", "CancelledError"),
        "AcceleratorError",
    }
    for error, expected in (
        (OSError(11, "busy"), True),
        (OSError(28, "full"), False),
        (PermissionError(1, "no"), False),
        (MemoryError(), True),
    ):
        assert verdict_of(error) is Verdict.INFRA
        assert is_transient(error) is expected
