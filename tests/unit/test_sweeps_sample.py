"""How many crash points a sweep tries: its module's number, four without one, or the option's."""

from __future__ import annotations

import pytest

from fixtures.project import Finished, Project


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
    done = collect(project, mark, *options)
    assert done.status == 0, done.text
    tests = [line for line in done.text.splitlines() if "::" in line]
    assert tests[-1].endswith(f"test_it[{last}]")
    assert len(tests) == (1 if "-" in last else int(last.split("of", maxsplit=1)[0]))


@pytest.mark.parametrize("arguments", ["0", "'2'", "", "2, 3"])
def test_a_marker_without_a_positive_number_is_refused(project: Project, arguments: str) -> None:
    done = collect(project, f"pytestmark = pytest.mark.cuts({arguments})")
    assert done.status != 0
    assert "cuts takes a number of at least 1" in done.text
