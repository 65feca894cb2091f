"""The options of a plan, and the plan that they ask for: harness plan and harness gate share them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from harness.cli.options import Options, add_images, add_runs, earlier_runs, further_images, say
from harness.errors import UsageError
from harness.gate import planner
from harness.gate.plan import MOST_JOBS, Plan
from harness.gate.planner import ALL, TARGET
from harness.gate.rules import TIERS
from harness.gate.timings import timings
from harness.known.history import runs

_TIER = planner.Options().tier
_NAMES = ("changed_since", "image", "images", "arch", "tier", "runs", "max_jobs", "target_seconds")


def configure(parser: Options) -> None:
    """Add the options. One that was not named is ``None`` or empty: see :func:`named`."""
    parser.add_argument(
        "--changed-since",
        metavar="REF",
        help="only what the changes since the merge base with REF touch, and those in no commit",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="NAME[/VARIANT][:VERSION]",
        help="plan this image; can be given several times (default: those of the suites)",
    )
    add_images(parser)
    parser.add_argument(
        "--arch",
        metavar="ARCH[,ARCH]",
        help=f"x86_64, aarch64, both, or {ALL} (default: the first of each image)",
    )
    parser.add_argument("--tier", choices=TIERS, help=f"how much runs (default: {_TIER})")
    add_runs(parser, "a folder of runs, or a history, whose durations count")
    parser.add_argument(
        "--max-jobs",
        type=int,
        metavar="N",
        help=f"pack into at most N jobs (default: {MOST_JOBS}, what GitHub's matrix takes)",
    )
    parser.add_argument(
        "--target-seconds",
        type=float,
        metavar="S",
        help=f"what a job should take at most (default: {TARGET:g}; a gate that runs here has one"
        " job for an image and architecture)",
    )


def named(options: argparse.Namespace) -> list[str]:
    """Return the options of a plan that the user named, such as ``--arch``."""
    return [
        f"--{name.replace('_', '-')}"
        for name in _NAMES
        if (value := getattr(options, name)) is not None and value != []
    ]


def make(options: argparse.Namespace, *, target: float = TARGET) -> Plan:
    """Return the plan that the options ask for, of the project in the working folder.

    Args:
        options: The options.
        target: The seconds that a job should take at most, where the options do not say it.

    Raises:
        HarnessError: An option is wrong, or as :func:`harness.gate.planner.gather` says.
    """
    most = MOST_JOBS if options.max_jobs is None else options.max_jobs
    if not 1 <= most <= MOST_JOBS:
        raise UsageError(f"--max-jobs is from 1 to {MOST_JOBS}, not {most}")
    if options.target_seconds is not None:
        target = options.target_seconds
        if not 0 < target < math.inf:
            raise UsageError(f"--target-seconds is a positive number, not {target:g}")
    wanted = planner.Options(
        images=tuple(options.image),
        arch=options.arch or "",
        tier=options.tier or _TIER,
        since=options.changed_since,
        max_jobs=most,
        target=target,
        folders=tuple(folder.absolute() for folder in further_images(options)),
    )
    history = timings(runs(earlier_runs(options)))
    return planner.make(planner.gather(Path.cwd(), wanted, history, say), wanted)
