"""Print the jobs of a gate: which images, architectures and tests, packed into shards.

harness plan                             everything of the tier gate, on the first arch of each image
harness plan --changed-since origin/main only what the changes since then touch
harness plan --tier nightly --arch all   everything, on all architectures
harness plan -o plan.json                writes the plan, and prints a table of it
harness plan --from rerun.json --github  the jobs of a plan that is there, such as second attempts

The plan is JSON on standard output, or in the file of -o: "jobs" has the jobs, each with its reason and
what it needs; "images" says of each image why it is in or out; "empty" says why there are no jobs.
gate.yaml of the working folder names the suites, and what a changed file selects. A test that the run
would leave out, or skip for a capability that the image lacks, is not planned and is counted.

--github prints lines for $GITHUB_OUTPUT instead: matrix={"include": [...]}, with job (its id), image,
arch, shard, timeout (minutes), labels and kvm of each job; count, the number of jobs; id; empty.

The same inputs make the same "id". Exit status: 0, also for an empty plan; 2 if an image.yaml,
gate.yaml, an option or a test file is wrong; 3 if git or pytest fails.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from harness.cli.options import add_json, print_json, say
from harness.errors import UsageError
from harness.gate import plan as plans
from harness.gate import planner
from harness.gate.plan import MOST_JOBS, Plan
from harness.gate.planner import ALL, TARGET, Options
from harness.gate.rules import TIERS
from harness.gate.timings import timings
from harness.known.history import runs

RUNS = Path(".harness/runs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="NAME[/VARIANT][:VERSION]",
        help="plan this image; can be given several times (default: those of the suites)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of images besides images/; can be given several times",
    )
    parser.add_argument(
        "--arch",
        default="",
        metavar="ARCH[,ARCH]",
        help=f"x86_64, aarch64, both, or {ALL} (default: the first of each image)",
    )
    parser.add_argument(
        "--tier", choices=TIERS, default="gate", help="how much runs (default: %(default)s)"
    )
    parser.add_argument(
        "--changed-since",
        default=None,
        metavar="REF",
        help="only what the changes since the merge base with REF touch, and those in no commit",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        action="append",
        default=None,
        metavar="DIR",
        help="a folder of runs, whose durations count; can be given several times (default:"
        " .harness/runs)",
    )
    parser.add_argument(
        "--max-jobs",
        type=int,
        default=MOST_JOBS,
        metavar="N",
        help="pack into at most so many jobs (default: %(default)s, what GitHub's matrix takes)",
    )
    parser.add_argument(
        "--target-seconds",
        type=float,
        default=TARGET,
        metavar="S",
        help="what a job should take at most (default: %(default)g)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=None, metavar="FILE", help="write the plan there"
    )
    parser.add_argument(
        "--from",
        dest="made",
        type=Path,
        default=None,
        metavar="FILE",
        help="print this plan, such as that of second attempts, and make none",
    )
    parser.add_argument(
        "--github", action="store_true", help="print lines for $GITHUB_OUTPUT instead"
    )
    add_json(parser)


def main(options: argparse.Namespace) -> int:
    """Make the plan and print it."""
    if options.made is not None:
        return _print(plans.read(options.made), options)
    if not 1 <= options.max_jobs <= MOST_JOBS:
        raise UsageError(f"--max-jobs is from 1 to {MOST_JOBS}, not {options.max_jobs}")
    if not 0 < options.target_seconds < math.inf:
        raise UsageError(f"--target-seconds is a positive number, not {options.target_seconds:g}")
    for folder in options.images:
        if not folder.is_dir():
            raise UsageError(f"--images {folder}: there is no such folder")
    places = options.runs if options.runs is not None else [RUNS] if RUNS.is_dir() else []
    wanted = Options(
        images=tuple(options.image),
        arch=options.arch,
        tier=options.tier,
        since=options.changed_since,
        max_jobs=options.max_jobs,
        target=options.target_seconds,
        folders=tuple(folder.absolute() for folder in options.images),
    )
    plan = planner.make(planner.gather(Path.cwd(), wanted, timings(runs(places)), say), wanted)
    return _print(plan, options)


def _print(plan: Plan, options: argparse.Namespace) -> int:
    if options.output is not None:
        plans.write(plan, options.output)
    if options.github:
        print(github(plan), end="")
    elif options.output is None or options.json:
        print_json(plans.dump(plan))
    if options.output is not None or options.github:
        print(table(plan), end="", file=sys.stderr)
    return 0


def github(plan: Plan) -> str:
    """Return the lines for ``$GITHUB_OUTPUT``; each value is one line."""
    values: dict[str, Any] = {
        "matrix": json.dumps({"include": [_leg(job) for job in plan.jobs]}, separators=(",", ":")),
        "count": len(plan.jobs),
        "id": plan.id,
        "empty": " ".join(plan.empty.split()),
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _leg(job: plans.Job) -> dict[str, Any]:
    """Return a job as a leg of a matrix; its tests stay in the plan: outputs have a limit of 1 MB."""
    return {
        "job": job.id,
        "image": job.image,
        "arch": job.arch,
        "shard": job.shard,
        "timeout": job.timeout_minutes,
        "labels": list(job.labels),
        "kvm": job.needs.kvm,
    }


def table(plan: Plan) -> str:
    """Return a plan for people."""
    lines = [f"plan {plan.id}: {len(plan.jobs)} jobs, tier {plan.tier}"]
    if plan.empty:
        lines.append(f"  empty: {plan.empty}")
    for job in plan.jobs:
        tests = f"{len(job.tests)} test{'s' if len(job.tests) != 1 else ''}"
        lines.append(f"  {job.id}  {tests}, about {job.seconds:.0f} s: {job.why}")
    for row in plan.images:
        if not row.planned:
            lines.append(f"  not {row.image} on {row.arch}: {row.why}")
    return "\n".join(lines) + "\n"
