"""The sample of a sweep: its module's number of crash points, four without one, or the option's."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.project import Finished, Project
from harness.pytest_plugin import sweeps


def collect(project: Project, mark: str, *options: str) -> Finished:
    project.write("test_suite.py", f"import pytest\n\n{mark}\n\ndef test_it(cut): ...\n")
    return project.pytest("--collect-only", "-q", "--strict-markers", *options)


@pytest.mark.parametrize(
    ("mark", "options", "last"),
    [
        ("", [], "4of4"),
        ("pytestmark = pytest.mark.cuts(2)", [], "2of2"),
        ("pytestmark = pytest.mark.cuts(2)", ["--cuts", "3"], "3of3"),
        ("pytestmark = pytest.mark.cuts(2)", ["--cut", "w00007-clean"], "w00007-clean"),
        ("pytestmark = pytest.mark.cuts(2)", ["--tier", "nightly"], "40of40"),
        ("pytestmark = pytest.mark.cuts(2)", ["--all", "--cuts", "3"], "3of3"),
    ],
)
def test_a_sweep_has_a_test_for_each_point_of_its_sample(
    project: Project, mark: str, options: list[str], last: str
) -> None:
    result = collect(project, mark, *options)
    assert result.status == 0, result.text
    tests = [line for line in result.text.splitlines() if "::" in line]
    assert tests[-1].endswith(f"test_it[{last}]")
    assert len(tests) == (1 if "-" in last else int(last.split("of", maxsplit=1)[0]))


@pytest.mark.parametrize("arguments", ["0", "'2'", "", "2, 3"])
def test_a_marker_without_a_positive_number_is_refused(project: Project, arguments: str) -> None:
    result = collect(project, f"pytestmark = pytest.mark.cuts({arguments})")
    assert result.status != 0
    assert "cuts takes a number of at least 1" in result.text


@pytest.mark.parametrize(
    ("option", "several", "name", "rest"),
    [
        (None, False, "upgrade: ", ""),
        ("aarch64", False, "upgrade: ", " --arch aarch64"),
        ("all", True, "upgrade on aarch64: ", " --arch aarch64"),
    ],
)
def test_a_failed_point_says_how_to_run_it_alone_on_its_architecture(
    option: str | None, several: bool, name: str, rest: str
) -> None:
    totals = {
        **{"sweep": "upgrade", "recording": "/r", "arch": "aarch64", "of several": several},
        **{"writes": 1, "flushes": 1, "places": 1, "kinds": 4, "point": "w1-clean", "rebuilt": 0.1},
    }
    report = SimpleNamespace(
        user_properties=[("cut", json.dumps(totals))],
        when="call",
        outcome="failed",
        nodeid="suites/power/test_x.py::test_it[0]",
    )
    lines: list[str] = []
    terminal = SimpleNamespace(
        stats={"failed": [report]}, section=lines.append, write_line=lines.append
    )
    config: Any = SimpleNamespace(option=SimpleNamespace(cut_seed=1, tier="", arch=option))
    sweeps.pytest_terminal_summary(terminal, config)
    assert lines[1].startswith(name)
    assert lines[2] == (
        "failed w1-clean; alone: suites/power/test_x.py::test_it --cut w1-clean --recording /r"
        + rest
    )
