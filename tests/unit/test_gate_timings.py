"""Timings: medians of runs that passed, outliers clipped; marks where there is no history."""

from __future__ import annotations

from typing import Any

import pytest

from harness.gate import timings
from harness.gate.timings import Timings, typical

TEST = "suites/boot/test_live.py::test_it"


def a_run(seconds: Any, **changes: Any) -> dict[str, Any]:
    test = {
        "id": TEST,
        "arch": "x86_64",
        "verdict": "passed",
        "seconds": {"setup": 1.0, "call": seconds, "teardown": 0.5},
    }
    return {"image": {"name": "kite"}, "tests": [{**test, **changes}]}


def test_the_median_of_the_passes_counts() -> None:
    known = timings.timings([a_run(10.0), a_run(12.0), a_run(11.0)])
    assert known.measured("kite", "x86_64", TEST) == 12.5
    assert known.measured("kite", "aarch64", TEST) is None
    assert known.measured("other", "x86_64", TEST) is None


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        ([10.0], 10.0),
        ([10.0, 600.0], 15.0),
        ([600.0, 10.0], 15.0),
        ([10.0, 10.0, 600.0, 600.0], 15.0),
        ([10.0, 11.0, 600.0], 11.0),
        ([0.1, 10.0, 10.0], 10.0),
        ([10.0, 12.0], 11.0),
    ],
)
def test_outliers_are_clipped(samples: list[float], seconds: float) -> None:
    assert typical(samples) == seconds


def test_a_failure_says_nothing_about_the_duration() -> None:
    runs = [a_run(10.0), *(a_run(900.0, verdict=verdict) for verdict in ("timeout", "infra", ""))]
    assert timings.timings(runs).measured("kite", "x86_64", TEST) == 11.5


def test_old_passes_no_longer_count() -> None:
    runs = [a_run(100.0)] * 40 + [a_run(10.0)] * timings.NEWEST
    assert timings.timings(runs).measured("kite", "x86_64", TEST) == 11.5


def test_a_run_of_several_architectures_tells_about_each() -> None:
    known = timings.timings([a_run(50.0, id=f"{TEST}[aarch64]", arch="aarch64"), a_run(10.0)])
    assert known.measured("kite", "aarch64", TEST) == 51.5
    assert known.measured("kite", "x86_64", TEST) == 11.5


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": None},
        {"seconds": {}},
        {"seconds": {"call": "long"}},
        {"seconds": {"call": -5.0}},
        {"seconds": {"call": float("inf")}},
        {"seconds": {"call": float("nan")}},
    ],
)
def test_damaged_history_is_left_out(changes: dict[str, Any]) -> None:
    run = a_run(1.0)
    run["tests"][0].update(changes)
    assert timings.timings([run]).samples == {}
    assert timings.timings([{"image": None, "tests": []}]).samples == {}


def test_the_pace_of_an_architecture_is_what_history_shows() -> None:
    known = Timings(
        {
            ("kite", "aarch64", "a"): [40.0],
            ("kite", "aarch64", "b"): [30.0],
            ("kite", "aarch64", "c"): [70.0],
        }
    )
    marks = {"a": 10.0, "b": 10.0, "c": 10.0, "new": 5.0}
    assert timings.pace(known, "kite", "aarch64", marks) == 4.0
    assert timings.pace(known, "kite", "x86_64", marks) == 1.0
