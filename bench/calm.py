"""The smoke tier beside a load: verdicts, second tries and hangs; each run has to be green."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from bench.core import Budget, Context, Judged, Row
from bench.load import load
from bench.suite import run_pytest

RUNS: Final = {0: 1, 8: 20, 16: 1}
"""How many times the tier runs beside how many programs; 20 of 20 is the goal beside 8."""

QUICK: Final = {8: 1}
GREEN: Final = ("passed", "flaky", "known", "")
"""Verdicts of tests that make no run red; a skipped test has none."""

NO_RED: Final = Budget(0, Judged.WORST)


def run(context: Context) -> list[Row]:
    """Run the smoke tier beside each load, by two workers and from the caches of the host."""
    rows = []
    calm: float | None = None
    for programs, runs in (QUICK if context.quick else RUNS).items():
        seconds: list[float] = []
        reds: list[int] = []
        verdicts: Counter[str] = Counter()
        retried = 0
        notes = ""
        for number in range(1, runs + 1):
            with load(programs):
                lasted, tests, red = _smoke(context, f"load-{programs}-{number}")
            seconds.append(lasted)
            reds.append(len(red))
            verdicts.update(test["verdict"] or test["outcome"] for test in tests)
            retried += sum(len(test.get("tries", ())) > 1 for test in tests)
            notes += "".join(f"; {test['id']}: {test['verdict']}: {test['reason']}" for test in red)
            counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
            note = f"{counts}; {retried} tried twice{notes}"
            context.say(f"load {programs}, run {number} of {runs}: {lasted:.0f} s; so far {note}")
        calm = calm or seconds[0]
        measurement = f"smoke beside a load of {programs}"
        rows += [
            Row(measurement, "harness", "s", tuple(seconds), (calm,) * runs, note=note),
            Row(f"{measurement}: red tests", "harness", "", tuple(reds), budget=NO_RED),
        ]
    return rows


def _smoke(context: Context, run: str) -> tuple[float, list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the smoke tier; return its seconds, the results of its tests and those that are red."""
    evidence = context.folder / run
    options = ("-n", "2", "--tier", "smoke", "--evidence", str(evidence))
    seconds, process = run_pytest("suites", *options)
    files = list(evidence.glob("*/results.json"))
    tests: list[dict[str, Any]] = []
    if files:
        tests = json.loads(files[0].read_text(encoding="utf-8"))["tests"]
    red = [test for test in tests if test["verdict"] not in GREEN]
    if not tests or (process.returncode and not red):
        raise RuntimeError(
            f"pytest ended with status {process.returncode}, {len(tests)} results and no red one: "
            + (process.stdout + process.stderr)[-2000:]
        )
    return seconds, tests, red
