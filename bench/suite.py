"""The acceptance suites: from states and without, by one worker and by two."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from bench.core import Budget, Context, Judged, Result
from bench.side import ROOT
from bench.start import NO_PEER
from bench.states import ACCEL
from harness import paths

EVERY = 6
"""Which tests are run: each sixth of the default sample, in the order they are collected.

All of them take more than an hour where each boots and installs by itself. Taken by their places,
short and long scenarios of all suites come in as they are.
"""

EVERY_QUICK = 24

BUDGET = Budget(1 / 3, Judged.RATIO)


def run(context: Context) -> list[Result]:
    """Run the same tests three ways, and compare what each came to."""
    tests, of = _sample(context.pick(EVERY, EVERY_QUICK))
    context.say(f"{len(tests)} of {of} tests: {' '.join(tests)}")
    fresh, fresh_verdicts = _suites(context, tests, "fresh", "--fresh")
    states = paths.cache_dir() / "states"
    had = sum(1 for _ in (states / "entries").glob("*")) if states.exists() else 0
    # What states are missing are built in this one.
    two, by_two = _suites(context, tests, "states, -n 2", "-n", "2")
    one, by_one = _suites(context, tests, "states", "-n", "1")
    for found in (by_two, by_one):
        if found != fresh_verdicts:
            differ = {name for name in found if found[name] != fresh_verdicts.get(name)}
            raise RuntimeError(f"verdicts differ from those of --fresh: {sorted(differ)}")
    what = f"{len(tests)} acceptance tests of {of}"
    passed = sum(end == "passed" for end in fresh_verdicts.values())
    told = f"the same verdicts all three times, {passed} passed: {', '.join(tests)}"
    before = f"beside -n 1, for x raw; with {had} states in the cache before it"
    return [
        Result(what, "--fresh", "s", (fresh,), note=told),
        Result(what, "states", "s", (one,), (fresh,), BUDGET, "beside --fresh, for x raw"),
        Result(what, "states, -n 2", "s", (two,), (one,), note=before),
    ]


def _sample(every: int) -> tuple[list[str], int]:
    """Return the names of the tests that are run, and how many there are to choose from."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", *NO_PEER, "--collect-only", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [line for line in told.splitlines() if line.startswith("suites/") and "::" in line]
    return names[::every], len(names)


def _suites(
    context: Context, tests: list[str], name: str, *options: str
) -> tuple[float, dict[str, str]]:
    """Run them; return the seconds and the outcome of each test."""
    report = context.folder / f"{name.replace(' ', '-')}.xml"
    started = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *tests, *NO_PEER, "-q"),
            *("--accel", ACCEL, f"--junit-xml={report}", *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    context.say(f"{name}: {seconds:.0f} s, status {done.returncode}")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest broke: {(done.stdout + done.stderr)[-2000:]}")
    return seconds, _outcomes(report)


def _outcomes(report: Path) -> dict[str, str]:
    found = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        child = next((each.tag for each in case if each.tag in ("failure", "error", "skipped")), "")
        found[name] = child or "passed"
    return found
