"""Print the jobs of a gate: which images, architectures and tests, packed into shards.

harness plan                              everything of the tier gate, on the first arch of each image
harness plan --changed-since origin/main  only what the changes since then touch
harness plan --tier nightly --arch all    everything, on all architectures
harness plan -o plan.json                 writes the plan, and prints a table of it
harness plan --from rerun.json --github   the jobs of a plan that is there, such as second attempts

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
import sys
from pathlib import Path
from typing import Any

from harness.cli import _planning
from harness.cli.options import add_json, print_json
from harness.gate import plan as plans
from harness.gate.plan import Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    _planning.configure(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the plan there")
    parser.add_argument(
        "--from",
        dest="plan_file",
        type=Path,
        metavar="FILE",
        help="print this plan, such as that of second attempts, and make none",
    )
    parser.add_argument(
        "--github", action="store_true", help="print lines for $GITHUB_OUTPUT instead"
    )
    add_json(parser)


def main(options: argparse.Namespace) -> int:
    """Make the plan and print it."""
    if options.plan_file is not None:
        return _print(plans.read(options.plan_file), options)
    return _print(_planning.make(options), options)


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
