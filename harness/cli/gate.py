"""Decide whether a change is accepted: run a plan on this host, or judge what runners left of one.

harness gate makes a plan (the options are those of harness plan), runs its jobs here one after
another, runs the jobs that were infra once more, judges, and writes the merged report. --plan FILE
runs a plan that is there already. Plan, results, judgement and report are below .harness/gate/latest.

harness gate PLAN RESULTS judges: each job of the plan has to have left a results.json of this plan in
the folder RESULTS, at any depth. A job that left none, or one that is cut off or interrupted, is
infra; so is a planned test that the results do not have. --rerun FILE writes the plan of the second
attempt: the jobs that are infra and ran once. One that passes then is flaky-infra: green, and
counted.

Exit status: that of harness acceptance for the verdict.
  0   green: each planned test is proven; or there is nothing to do, and the plan says why
  1   a test failed because of the image (verdict product)
  2   wrong usage; or Ctrl-C, SIGTERM or a closed terminal ended the gate, and no test that had run is
      red
  10  a test failed because of itself (verdict test)
  11  a job is not proven (verdict infra), or there is no plan
  12  a deadline passed (verdict timeout)
Where no plan can be made, the status is that of harness plan.

JSON: {"format", "plan", "commit", "verdict", "status", "reason", "counts": {VERDICT: JOBS}, "tests":
{VERDICT: TESTS}, "jobs": [JOB], "notes": [LINE]}. JOB is {"id", "image", "arch", "tier", "verdict",
"reason", "counts", "attempts": [NUMBER], "seconds", "tests": [TEST], "results": [PATH], "why"}; its
tests are those that are not plainly passed or skipped: {"id", "verdict", "reason", "attempt",
"evidence", "signature", "tracker"}. The worst come first. Paths are relative to RESULTS.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.cli import _planning
from harness.cli.options import add_json, print_json, say
from harness.cli.plan import table
from harness.errors import HarnessError, StoreError, UsageError

if TYPE_CHECKING:
    from harness.gate.judge import Judgement

_GATES: Final = Path(".harness/gate")
_LATEST: Final = "latest"
_KEPT: Final = 10
"""Gates whose results are kept; a new one removes older ones."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    judging = parser.add_argument_group("to judge")
    judging.add_argument("judged", nargs="?", type=Path, metavar="PLAN", help="the plan")
    judging.add_argument(
        "results", nargs="?", type=Path, metavar="RESULTS", help="the folder of what its jobs left"
    )
    judging.add_argument(
        "--rerun",
        type=Path,
        metavar="FILE",
        help="write the plan of the second attempt; it has no job if none has to run again",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--summary",
        type=Path,
        metavar="FILE",
        help="append a summary in Markdown, of 900 KB at most: GitHub's step summary",
    )
    form = output.add_mutually_exclusive_group()
    form.add_argument(
        "--annotations",
        action="store_true",
        help="print GitHub's annotations too, ten of a kind at most",
    )
    add_json(form)
    running = parser.add_argument_group("to run the gate here")
    running.add_argument(
        "--plan", type=Path, metavar="FILE", help="run this plan instead of making one"
    )
    running.add_argument(
        "--pytest",
        default="",
        metavar="ARGUMENTS",
        help="further arguments of each job for pytest, in one word: --pytest '--accel tcg -x'",
    )
    _planning.configure(parser.add_argument_group("for the plan, as of harness plan"))


def main(options: argparse.Namespace) -> int:
    """Judge, or run and judge."""
    if options.judged is None:
        return _run(options)
    if options.results is None:
        raise UsageError(
            f"harness gate {options.judged}: the folder of results is missing",
            hint=f"harness gate {options.judged} RESULTS judges it;"
            f" harness gate --plan {options.judged} runs it here",
        )
    return _show(_judge(options.judged, options.results, options.rerun), options)


def _judge(file: Path, results: Path, rerun: Path | None) -> Judgement:
    """Return the judgement; write the plan of the second attempt."""
    from harness.gate import judge, plan
    from harness.gate.collect import collect

    try:
        planned = plan.read(file)
    except HarnessError as error:
        # The planner was cancelled, or failed: nothing is proven.
        return judge.unreadable(error.what)
    judgement = judge.judge(planned, collect(results, planned))
    if rerun is not None:
        rerun.parent.mkdir(parents=True, exist_ok=True)
        plan.write(judge.rerun(planned, judgement), rerun)
    return judgement


def _show(judgement: Judgement, options: argparse.Namespace) -> int:
    """Print the judgement, append the summary, and return the exit status."""
    from harness.gate import summary

    if options.json:
        print_json(judgement.dump())
    else:
        print("\n".join(summary.table(judgement)))
        if options.annotations:
            print("\n".join(summary.commands(judgement)))
    if options.summary is not None:
        try:
            # Other commands of the same step have written theirs.
            with options.summary.open("a", encoding="utf-8", errors="replace") as stream:
                stream.write(summary.markdown(judgement))
        except OSError as error:
            raise StoreError(f"{options.summary} cannot be written: {error}") from error
    return judgement.status


# --- the whole gate ---------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from harness.gate import judge, plan
    from harness.gate.collect import collect
    from harness.gate.local import Jobs

    if options.rerun is not None:
        raise UsageError("--rerun goes with PLAN and RESULTS: here the second attempts are run")
    if options.plan is None:
        # One host runs them all: each further job would end with a worker that waits for the other.
        planned = _planning.make(options, target=math.inf)
    elif named := _planning.named(options):
        raise UsageError(f"--plan names a plan, and {named[0]} is for a new one")
    else:
        planned = plan.read(options.plan)
    folder = _begin()
    files = {1: folder / "plan.json", 2: folder / "rerun.json"}
    results = folder / "results"
    plan.write(planned, files[1])
    print(table(planned), end="", file=sys.stderr)
    arguments = [word for each in options.images for word in ("--images", str(each))]
    arguments += shlex.split(options.pytest)
    # Standard output is the result's: with --json it is one object.
    output = sys.stderr if options.json else None
    with Jobs(results, arguments=arguments, output=output, say=say) as jobs:
        jobs.run(planned, files[1])
        judgement = judge.judge(planned, collect(results, planned))
        again = judge.rerun(planned, judgement)
        if again.jobs and not jobs.interruption:
            plan.write(again, files[2])
            say(f"{len(again.jobs)} of {len(planned.jobs)} jobs were infra and run once more")
            jobs.run(again, files[2])
            judgement = judge.judge(planned, collect(results, planned))
    if planned.jobs:
        _report(folder)
    status = _show(judgement, options)
    say(f"plan, results and report are in {folder}")
    if jobs.interruption:
        say(f"{jobs.interruption} ended the gate: what had not run is not proven")
        return 2 if judgement.verdict == "infra" else status
    return status


def _begin() -> Path:
    """Return the new folder of a gate, to which ``latest`` leads; remove old ones."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    try:
        _GATES.mkdir(parents=True, exist_ok=True)
        ignore = _GATES.parent / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        names = (stem, *(f"{stem}-{number}" for number in range(2, 100)))
        folder = next(path for name in names if not (path := _GATES / name).exists())
        folder.mkdir()
        link = _GATES / f".{folder.name}"
        link.symlink_to(folder.name)
        link.replace(_GATES / _LATEST)
    except OSError as error:
        raise StoreError(f"{_GATES} cannot be written: {error}") from error
    old = sorted(path for path in _GATES.glob("2*") if path.is_dir() and not path.is_symlink())
    for path in old[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _report(folder: Path) -> None:
    """Write the merged report; one that fails must not take the judgement with it."""
    from harness.evidence.report import page, record
    from harness.evidence.report.merge import merge
    from harness.evidence.results import FILE

    records = []
    for path in sorted((folder / "results").rglob(FILE)):
        if not path.parent.is_symlink():
            # A killed job's results may be cut off.
            with contextlib.suppress(HarnessError):
                records.append(record.gather(path.parent))
    try:
        page.write(merge(records), folder / page.FILE)
    except Exception as error:
        say(f"no report, because of {error!r}")
