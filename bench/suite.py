"""The acceptance suites: from states and without, by one worker and by two."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from bench.core import Budget, Context, Judged, Row
from bench.labs import ACCEL
from bench.side import ROOT
from bench.start import NO_PEER
from harness import paths

EVERY = 6
"""Run each sixth test of the default sample, in the order of collection.

All of them take more than an hour if each test boots and installs by itself. Each sixth is a mix of
short and long scenarios of all suites.
"""

EVERY_QUICK = 24

BUDGET = Budget(1 / 3, Judged.RATIO)


def run(context: Context) -> list[Row]:
    """Run the same tests in three ways and compare their outcomes."""
    tests, of = _sample(context.pick(EVERY, EVERY_QUICK))
    context.say(f"{len(tests)} of {of} tests: {' '.join(tests)}")
    fresh, fresh_outcomes = _suites(context, tests, "fresh", "--fresh")
    states = paths.cache_dir() / "states"
    before = sum(1 for _ in (states / "entries").glob("*")) if states.exists() else 0
    # This run builds the states that are missing.
    two, by_two = _suites(context, tests, "states, -n 2", "-n", "2")
    one, by_one = _suites(context, tests, "states", "-n", "1")
    for outcomes in (by_two, by_one):
        if outcomes != fresh_outcomes:
            differ = {name for name in outcomes if outcomes[name] != fresh_outcomes.get(name)}
            raise RuntimeError(f"outcomes differ from those of --fresh: {sorted(differ)}")
    measurement = f"{len(tests)} acceptance tests of {of}"
    passed = sum(end == "passed" for end in fresh_outcomes.values())
    note = f"the same outcomes all three times, {passed} passed: {', '.join(tests)}"
    cached = f"beside -n 1, for x raw; with {before} states in the cache before it"
    return [
        Row(measurement, "--fresh", "s", (fresh,), note=note),
        Row(measurement, "states", "s", (one,), (fresh,), BUDGET, "beside --fresh, for x raw"),
        Row(measurement, "states, -n 2", "s", (two,), (one,), note=cached),
    ]


def run_pytest(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run pytest on the host's caches, with the accelerator of all benchmarks; return its seconds."""
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *NO_PEER, "-q", "--accel", ACCEL, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return time.perf_counter() - started, process


def _sample(every: int) -> tuple[list[str], int]:
    """Return the names of the tests to run, and the number of all tests."""
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", *NO_PEER, "--collect-only", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [line for line in listing.splitlines() if line.startswith("suites/") and "::" in line]
    return names[::every], len(names)


def _suites(
    context: Context, tests: list[str], name: str, *options: str
) -> tuple[float, dict[str, str]]:
    """Run the tests; return the seconds and the outcome of each test."""
    report = context.folder / f"{name.replace(' ', '-')}.xml"
    seconds, process = run_pytest(*tests, f"--junit-xml={report}", *options)
    context.say(f"{name}: {seconds:.0f} s, status {process.returncode}")
    if process.returncode not in (0, 1):
        raise RuntimeError(f"pytest failed: {(process.stdout + process.stderr)[-2000:]}")
    return seconds, _outcomes(report)


def _outcomes(report: Path) -> dict[str, str]:
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        child = next(
            (element.tag for element in case if element.tag in ("failure", "error", "skipped")), ""
        )
        outcomes[name] = child or "passed"
    return outcomes
