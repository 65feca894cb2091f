"""Known failures in runs of pytest: what they make green, and what stays red all the same."""

from __future__ import annotations

import datetime
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Finished, Project
from harness.evidence.signature import signature

TESTS = """
import pytest

from harness.errors import PanicError, QemuExitedError

def panics(word="VFS"):
    raise PanicError(f"node: Kernel panic - not syncing: {word} at 0x1234")

@pytest.fixture
def ends_badly():
    yield
    raise OSError("the teardown fails")

@pytest.fixture
def begins_badly():
    panics()

"""

SAME = "test_it.py::test_it"


def known_yaml(project: Project, **keys: str) -> None:
    day = datetime.datetime.now(datetime.UTC).date()
    entry = {
        "test": "test_it.py::*",
        "pattern": "not syncing: VFS",
        "tracker": "https://tracker.example/7",
        "owner": "kernel team",
        "added": str(day),
        "expires": str(day + datetime.timedelta(days=30)),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in (entry | keys).items()]
    project.write("known.yaml", "known:\n  - " + "\n    ".join(lines) + "\n")


def run(project: Project, text: str, *options: str) -> Finished:
    project.write("test_it.py", TESTS + text)
    return project.pytest("-q", "--image", "micro", "--acceptance", "test_it.py", *options)


def latest(project: Project) -> Path:
    return project.folder / ".harness/runs/latest"


def only_test(project: Project) -> dict[str, Any]:
    (test,) = json.loads((latest(project) / "results.json").read_text())["tests"]
    return dict(test)


def properties(project: Project) -> dict[str, str]:
    cases = list(ET.parse(latest(project) / "junit.xml").getroot().iter("testcase"))
    pairs = [
        (each.get("name", ""), each.get("value", ""))
        for case in cases
        for each in case.iter("property")
    ]
    assert len(pairs) == len(dict(pairs)), "a property is there twice"
    return dict(pairs)


PANICS = "def test_it(lab):\n    panics()\n"


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "workers"])
@pytest.mark.parametrize(
    "text",
    [PANICS, "def test_it(lab, begins_badly):\n    pass\n"],
    ids=["call", "setup"],
)
def test_a_known_failure_makes_no_run_fail(
    project: Project, text: str, workers: tuple[str, ...]
) -> None:
    known_yaml(project)
    result = run(project, text, *workers)
    assert result.status == 0, result.text
    assert "1 known" in result.text
    assert f"known    {SAME}\n" in result.text
    assert "https://tracker.example/7 (kernel team, known.yaml:2)" in result.text
    test = only_test(project)
    assert (test["outcome"], test["verdict"]) == ("xfailed", "known")
    assert "not syncing: VFS" in test["reason"]
    assert test["known"]["entry"] == "known.yaml:2"
    assert test["known"]["tracker"] == "https://tracker.example/7"
    assert test["known"]["expired"] is False
    # That of the failure, whether it is known or not.
    reason = "harness.errors.PanicError: node: Kernel panic - not syncing: VFS at 0x99"
    assert test["signature"] == signature("test_it.py::test_it", "product", reason)
    assert (latest(project) / test["evidence"]).is_dir()
    facts = properties(project)
    assert facts["verdict"] == "known"
    assert facts["signature"] == test["signature"]
    assert facts["tracker"] == "https://tracker.example/7"
    content = json.loads((latest(project) / "results.json").read_text())
    assert content["verdicts"] == {"known": 1}
    assert content["status"] == 0


@pytest.mark.parametrize(
    ("text", "verdict", "status"),
    [
        ("def test_it(lab):\n    panics('sysrq')\n", "product", 1),
        ("def test_it(lab):\n    assert 1 == 2\n", "product", 1),
        (
            "def test_it(lab):\n    try:\n        panics()\n    finally:\n        1 / 0\n",
            "test",
            10,
        ),
        ("def test_it(lab, ends_badly):\n    panics()\n", "infra", 11),
    ],
    ids=["another panic", "assertion", "hidden by another", "teardown"],
)
def test_another_failure_of_the_same_test_is_red(
    project: Project, text: str, verdict: str, status: int
) -> None:
    known_yaml(project)
    result = run(project, text, "--no-retry")
    assert result.status == status, result.text
    test = only_test(project)
    assert (test["outcome"], test["verdict"], test["known"]) == ("failed", verdict, None)
    assert properties(project)["verdict"] == verdict
    assert f"{verdict:8} {SAME}" in result.text
    assert f"known    {SAME}" not in result.text


def test_a_red_test_stays_red_when_its_teardown_fails_as_known(project: Project) -> None:
    known_yaml(project, pattern="the teardown fails")
    result = run(project, "def test_it(lab, ends_badly):\n    panics()\n", "--no-retry")
    assert result.status == 1, result.text
    assert only_test(project)["verdict"] == "product"
    assert "1 failed, 1 error" in result.text
    assert " known" not in result.text.splitlines()[-1]


def test_an_entry_that_has_expired_excuses_nothing(project: Project) -> None:
    known_yaml(project, added="2026-01-01", expires="2026-02-01")
    result = run(project, PANICS)
    assert result.status == 1, result.text
    test = only_test(project)
    assert (test["outcome"], test["verdict"]) == ("failed", "product")
    assert test["known"]["expired"] is True
    assert "known until 2026-02-01: https://tracker.example/7" in result.text
    assert "expired  test_it.py::*\n" in result.text
    assert properties(project)["tracker"] == "https://tracker.example/7"


def test_an_expired_entry_is_reported_although_nothing_fails(project: Project) -> None:
    known_yaml(project, added="2026-01-01", expires="2026-02-01")
    result = run(project, "def test_it(lab):\n    pass\n")
    assert result.status == 0, result.text
    assert "expired  test_it.py::*\n" in result.text


def test_a_known_failure_of_the_host_is_not_tried_again(project: Project) -> None:
    known_yaml(project, pattern="QEMU has bug 7")
    result = run(project, "def test_it(lab):\n    raise QemuExitedError('QEMU has bug 7')\n")
    assert result.status == 0, result.text
    test = only_test(project)
    assert (test["verdict"], test["tries"]) == ("known", [])


def test_tries_and_flaky_tests_have_signatures(project: Project) -> None:
    text = """
def test_it(lab):
    if lab.folder.name != "try-2":
        raise QemuExitedError("QEMU died at 0x77")
"""
    result = run(project, text)
    assert result.status == 0, result.text
    test = only_test(project)
    first, second = test["tries"]
    reason = "harness.errors.QemuExitedError: QEMU died at 0x1"
    assert first["signature"] == signature("test_it.py::test_it", "infra", reason)
    assert second["signature"] == ""
    assert test["signature"] == first["signature"]
    assert properties(project)["signature"] == first["signature"]


def test_a_crash_of_a_worker_has_a_signature(project: Project) -> None:
    text = "def test_it(lab):\n    import os\n    os._exit(3)\n"
    run(project, text, "-n", "1", "--no-retry")
    test = only_test(project)
    assert (test["verdict"], len(test["signature"])) == ("infra", 16)


def test_a_wrong_file_is_a_usage_error_before_anything_runs(project: Project) -> None:
    known_yaml(project, owner="")
    result = run(project, PANICS)
    assert result.status == 4, result.text
    assert "known.yaml:5: known.0.owner" in result.text
    result = run(project, PANICS, "--known", "none.yaml")
    assert result.status == 4, result.text
    assert "none.yaml:1: cannot be read" in result.text


def test_another_file_may_be_named(project: Project) -> None:
    known_yaml(project)
    (project.folder / "known.yaml").rename(project.folder / "other.yaml")
    assert run(project, PANICS).status == 1
    assert run(project, PANICS, "--known", "other.yaml").status == 0


def test_a_run_with_nothing_known_imports_none_of_it(project: Project) -> None:
    text = "def test_it(lab):\n    import sys\n    assert 're2' not in sys.modules\n"
    result = run(project, text)
    assert result.status == 0, result.text
