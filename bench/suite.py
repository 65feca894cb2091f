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

SUITES = ("suites/boot", "suites/install")
"""Those that run in a few minutes even where every test boots and installs by itself."""

BUDGET = Budget(1 / 3, Judged.RATIO)


def run(context: Context) -> list[Result]:
    """Run the suites three ways, and compare what each test came to."""
    fresh, fresh_verdicts = _suites(context, "fresh", "--fresh")
    states = paths.cache_dir() / "states"
    had = sum(1 for _ in (states / "entries").glob("*")) if states.exists() else 0
    first, verdicts = _suites(context, "states")
    warm, again = _suites(context, "states, -n 1", "-n", "1")
    two, by_two = _suites(context, "states, -n 2", "-n", "2")
    for found in (verdicts, again, by_two):
        if found != fresh_verdicts:
            differ = {name for name in found if found[name] != fresh_verdicts.get(name)}
            raise RuntimeError(f"verdicts differ from those of --fresh: {sorted(differ)}")
    what = "suites boot and install"
    told = f"{len(verdicts)} tests, the same verdicts all four times"
    return [
        Result(what, "--fresh", "s", (fresh,), note=told),
        Result(what, "states", "s", (warm,), (fresh,), BUDGET, "beside --fresh, for x raw"),
        Result(
            what,
            "states, first run",
            "s",
            (first,),
            (fresh,),
            note=f"with {had} states in the cache before it",
        ),
        Result(what, "states, -n 2", "s", (two,), (warm,), note="beside -n 1, for x raw"),
    ]


def _suites(context: Context, name: str, *options: str) -> tuple[float, dict[str, str]]:
    """Run them; return the seconds and the outcome of each test."""
    report = context.folder / f"{name.replace(' ', '-')}.xml"
    chosen = SUITES[:1] if context.quick else SUITES
    started = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *chosen, *NO_PEER, "-q"),
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
