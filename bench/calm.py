"""The smoke tier beside a load: verdicts, second tries and hangs; each run has to be green."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from bench.core import Budget, Context, Row
from bench.load import load
from bench.suite import run_pytest

LOADS: Final = (0, 8, 16)
QUICK: Final = (8,)
GREEN: Final = ("passed", "flaky", "known", "")
"""Verdicts of tests that make no run red; a skipped test has none."""


def run(context: Context) -> list[Row]:
    """Run the smoke tier beside each load, by two workers and from the caches of the host."""
    rows = []
    calm: float | None = None
    for programs in LOADS if context.pick(1, 0) else QUICK:
        with load(programs):
            seconds, tests = _smoke(context, programs)
        verdicts = Counter(test["verdict"] or test["outcome"] for test in tests)
        red = [test for test in tests if test["verdict"] not in GREEN]
        retried = sum(len(test.get("tries", ())) > 1 for test in tests)
        counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
        note = f"{counts}; {retried} tried twice" + "".join(
            f"; {test['id']}: {test['verdict']}: {test['reason']}" for test in red
        )
        calm = calm or seconds
        measurement = f"smoke beside a load of {programs}"
        rows += [
            Row(measurement, "harness", "s", (seconds,), (calm,), note=note),
            Row(f"{measurement}: red tests", "harness", "", (len(red),), budget=Budget(0)),
        ]
        context.say(f"load {programs}: {seconds:.0f} s, {note}")
    return rows


def _smoke(context: Context, programs: int) -> tuple[float, list[dict[str, Any]]]:
    """Run the smoke tier; return its seconds and the results of its tests."""
    evidence = context.folder / f"load-{programs}"
    options = ("-n", "2", "--tier", "smoke", "--evidence", str(evidence))
    seconds, process = run_pytest("suites", *options)
    files = sorted(evidence.glob("*/results.json"))
    if not files:
        raise RuntimeError(f"pytest left no results: {(process.stdout + process.stderr)[-2000:]}")
    tests: list[dict[str, Any]] = json.loads(files[-1].read_text(encoding="utf-8"))["tests"]
    return seconds, tests
