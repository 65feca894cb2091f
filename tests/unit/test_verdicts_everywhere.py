"""Each verdict is the same in terminal, junit.xml, results.json, report, bundle and exit status."""

from __future__ import annotations

import datetime
import json
import xml.etree.ElementTree as ET

import pytest

from fixtures.project import Project
from harness.evidence.bundle import FILE, Bundle
from harness.evidence.report import page
from harness.evidence.report.text import text

TESTS = """
import pathlib

import pytest

from harness import errors

@pytest.fixture(autouse=True)
def evidence(lab):
    (lab.folder / "log").write_text("")

def test_passed(): ...

def test_product():
    raise errors.PanicError("leaf: the guest's kernel panicked")

def test_product_by_assertion():
    assert "active" == "failed"

def test_test():
    raise KeyError("a fault of the test")

def test_infra():
    raise errors.DiskFullError("no space left")

def test_timeout():
    from harness.deadline import UNSCALED
    raise errors.WaitTimeoutError("a prompt of leaf", UNSCALED.after(0.001))

def test_known():
    raise errors.PanicError("leaf: the known panic")

def test_flaky():
    path = pathlib.Path("tried")
    if not path.exists():
        path.write_text("")
        raise errors.QemuExitedError("QEMU of leaf ended")

def test_skipped():
    pytest.skip("needs nothing")
"""

KNOWN = """
known:
  - test: "*::test_known"
    pattern: the known panic
    tracker: https://tracker.example/issues/7
    owner: kernel team
    added: 2026-11-20
    expires: 2099-12-20
"""

STATUS = {
    "passed": 0,
    "product": 1,
    "product_by_assertion": 1,
    "test": 10,
    "infra": 11,
    "timeout": 12,
    "known": 0,
    "flaky": 0,
    "skipped": 0,
}
VERDICT = {"product_by_assertion": "product", "skipped": ""}
LETTER = {"passed": ".", "known": "k", "flaky": "~", "skipped": "s"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project after a run of all tests."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.write("test_it.py", TESTS)
    today = datetime.datetime.now(datetime.UTC).date()
    known = KNOWN.replace("2026-11-20", str(today))
    project.write(
        "known.yaml", known.replace("2099-12-20", str(today + datetime.timedelta(days=30)))
    )
    return project


def names(text: str) -> str:
    return text.rpartition("::test_")[2]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_each_verdict_is_the_same_everywhere(project: Project, workers: tuple[str, ...]) -> None:
    (project.folder / "tried").unlink(missing_ok=True)
    result = project.pytest("-v", "--image=micro", "--acceptance", *workers, "test_it.py")
    assert result.status == 1, result.text  # the image's fault is the weightiest
    run = project.folder / ".harness/runs/latest"
    expected = {name: VERDICT.get(name, name) for name in STATUS}

    content = json.loads((run / "results.json").read_text())
    assert content["status"] == 1
    assert {names(each["id"]): each["verdict"] for each in content["tests"]} == expected
    counted = [name for name in expected.values() if name]
    assert content["verdicts"] == {name: counted.count(name) for name in set(counted)}
    places = {names(each["id"]): each["evidence"] for each in content["tests"]}

    junit = {}
    for case in ET.parse(run / "junit.xml").getroot().iter("testcase"):
        verdicts = [p.get("value") for p in case.iter("property") if p.get("name") == "verdict"]
        bad = case.find("failure") is not None or case.find("error") is not None
        assert bad == (STATUS[names("::" + case.get("name", ""))] != 0)
        junit[names("::" + case.get("name", ""))] = verdicts
    assert junit == {
        name: [] if name in ("passed", "skipped") else [verdict]
        for name, verdict in expected.items()
    }

    (record,) = page.read(run / "report.html")["runs"]
    assert {names(each["id"]): each["verdict"] for each in record["tests"]} == expected
    shown = text({"format": 1, "runs": [record]})
    for name, verdict in expected.items():
        listed = f"{verdict:8} test_it.py::test_{name}" in shown
        assert listed == (name not in ("passed", "skipped")), shown

    bundles = {}
    for path in run.glob(f"*/{FILE}"):
        with Bundle(path) as bundle:
            bundles[names(bundle.manifest.test.id)] = bundle.manifest.test.verdict
            assert path.parent.name == places[names(bundle.manifest.test.id)]
    # That of a flaky test is the bundle of the try that failed.
    assert bundles == {
        name: "infra" if name == "flaky" else verdict
        for name, verdict in expected.items()
        if name not in ("passed", "skipped")
    }

    for name, verdict in expected.items():
        if name not in ("passed", "skipped"):
            assert f"\n{verdict:8} test_it.py::test_{name}\n" in result.text, result.text
    assert "5 failed, 1 passed, 1 skipped" in result.text


ALONE = [name for name in STATUS if name not in ("passed", "skipped", "product_by_assertion")]


@pytest.mark.parametrize("name", ALONE)
def test_a_run_of_one_verdict_has_its_status(project: Project, name: str) -> None:
    (project.folder / "tried").unlink(missing_ok=True)
    result = project.pytest("-q", "--image=micro", "--acceptance", f"test_it.py::test_{name}")
    assert result.status == STATUS[name], result.text
    content = json.loads((project.folder / ".harness/runs/latest/results.json").read_text())
    assert content["status"] == STATUS[name]
    letter = result.text.strip()[:2]
    assert LETTER.get(name, "F") in letter
