"""A second try in a real guest: QEMU is killed under the first."""

from __future__ import annotations

import json

import pytest

from fixtures.project import Project

TEST = """
import os
import signal

def test_it(lab):
    machine = lab.boot("micro").wait_ready()
    if lab.folder.name != "try-2":
        os.kill(machine.pid, signal.SIGKILL)
    assert machine.succeed("echo up") == "up\\n"
    # The log begins with this machine: nothing of the first one is in it.
    assert (machine.evidence / "serial.log").read_bytes().count(b"Linux version") <= 1
"""


@pytest.mark.parametrize(
    ("options", "verdict", "status"),
    [((), "flaky", 0), (("-n", "2"), "flaky", 0), (("--no-retry",), "infra", 11)],
    ids=["alone", "workers", "no retry"],
)
def test_qemu_that_dies_is_tried_once_more(
    project: Project,
    options: tuple[str, ...],
    verdict: str,
    status: int,
) -> None:
    project.write("test_it.py", TEST)
    arguments = ("-q", "--image", "micro", "--acceptance", "test_it.py", *options)
    result = project.pytest(*arguments)
    assert result.status == status, result.text
    assert f"{verdict:8} test_it.py::test_it" in result.text
    latest = project.folder / ".harness/runs/latest"
    (test,) = json.loads((latest / "results.json").read_text())["tests"]
    assert test["verdict"] == verdict
    assert "QemuExitedError" in test["reason"]
    assert (latest / test["evidence"] / "micro/serial.log").exists()
    assert f'name="verdict" value="{verdict}"' in (latest / "junit.xml").read_text()
    if verdict == "flaky":
        assert [each["verdict"] for each in test["tries"]] == ["infra", "passed"]
        assert (latest / test["tries"][1]["evidence"] / "micro/serial.log").exists()
