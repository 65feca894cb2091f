"""Known failures of a real guest: a known panic, another failure, and an entry that has expired."""

from __future__ import annotations

import datetime
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Finished, Project
from harness.evidence.bundle import FILE, Bundle

TESTS = """
def test_it(lab):
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.leave()
    machine.console.send_line("{}")
    machine.console.expect("this never comes")
"""
PANIC = "echo c > /proc/sysrq-trigger"
POWER_OFF = "poweroff -f"


def run(project: Project, command: str, *, days: int, **keys: Any) -> Finished:
    """Run the test with an entry that was added so many days ago, for ten days."""
    added = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days)
    entry = {
        "test": "test_it.py::test_it",
        "image": "micro",
        "arch": "x86_64",
        "pattern": "Kernel panic - not syncing: sysrq triggered crash",
        "evidence": {"micro/serial.log": "sysrq: Trigger a crash"},
        "tracker": "https://tracker.example/7",
        "owner": "kernel team",
        "added": str(added),
        "expires": str(added + datetime.timedelta(days=10)),
    } | keys
    # JSON is YAML.
    project.write("known.yaml", json.dumps({"known": [entry]}))
    project.write("test_it.py", TESTS.format(command))
    return project.pytest(
        "-q", "--image", "micro", "--arch", "x86_64", "--acceptance", "test_it.py"
    )


def only_test(project: Project) -> dict[str, Any]:
    (test,) = json.loads((latest(project) / "results.json").read_text())["tests"]
    return dict(test)


def latest(project: Project) -> Path:
    return project.folder / ".harness/runs/latest"


def test_a_panic_that_is_known_is_green_and_kept(project: Project) -> None:
    result = run(project, PANIC, days=0)
    assert result.status == 0, result.text
    test = only_test(project)
    assert (test["verdict"], test["outcome"]) == ("known", "xfailed")
    assert (latest(project) / test["evidence"] / "micro/serial.log").exists()
    # The machines of a known failure are no news: it takes none of the run's three places.
    with Bundle(latest(project) / test["evidence"] / FILE) as bundle:
        assert bundle.manifest.machines == ()
        assert [each.why for each in bundle.manifest.withheld] == [
            "the failure is known (known.yaml:1)"
        ]
    case = next(ET.parse(latest(project) / "junit.xml").getroot().iter("testcase"))
    facts = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert (facts["verdict"], facts["signature"]) == ("known", test["signature"])
    listed = project.run(project.python, "-m", "harness.cli", "known", "--json")
    (entry,) = json.loads(listed.text)["entries"]
    assert (entry["occurred"], entry["without"], entry["age"]) == (1, 0, 0)
    # The same failure of another run has the same signature.
    result = run(project, PANIC, days=30)
    assert result.status == 1, result.text
    again = only_test(project)
    assert (again["verdict"], again["known"]["expired"]) == ("product", True)
    with Bundle(latest(project) / again["evidence"] / FILE) as bundle:
        assert [each.name for each in bundle.manifest.machines] == ["micro"]
    assert again["signature"] == test["signature"]
    assert "known until" in result.text
    assert project.run(project.python, "-m", "harness.cli", "known", "check").status == 1


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (POWER_OFF, {}),
        (PANIC, {"evidence": {"micro/serial.log": "VFS: cannot mount"}}),
    ],
    ids=["another failure", "another panic"],
)
def test_another_failure_of_the_guest_is_red(
    project: Project, command: str, keys: dict[str, Any]
) -> None:
    result = run(project, command, days=0, **keys)
    assert result.status == 1, result.text
    test = only_test(project)
    assert (test["verdict"], test["known"]) == ("product", None)
