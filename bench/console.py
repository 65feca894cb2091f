"""A command on the console: how long from sending it to having its output and status."""

from __future__ import annotations

import statistics
from functools import partial

from bench import peer, side
from bench.core import Budget, Context, Result, missing, paired
from bench.guest import Guest

WHAT = "console command"
BUDGET = Budget(2.0)
LABGRID = ("labgrid-qemu", "labgrid-serial")


def run(context: Context) -> list[Result]:
    """Run ``echo hello`` through each side of one guest, in turns."""
    rounds = context.pick(7, 2)
    count = context.pick(200, 30)
    few = context.pick(15, 5)
    names = ["raw", "harness", "raw-driver", "raw-pty"]
    if peer.version():
        names += LABGRID
    every: dict[str, list[float]] = {name: [] for name in names}

    with Guest(context.folder, "latency") as guest:
        guest.login()

        def turn(name: str) -> float:
            number = few if name in LABGRID else count
            told = side.ask(guest, name, "commands", count=number, folder=str(context.folder))
            samples: list[float] = [1000 * seconds for seconds in told["samples"]]
            every[name] += samples
            return statistics.median(samples)

        taken = paired(rounds, {name: partial(turn, name) for name in names}, context.say)
    spread = {
        name: f"of single commands: n={len(each)}, min {min(each):.2f}, max {max(each):.2f} ms"
        for name, each in every.items()
    }
    rows = [
        Result(
            WHAT,
            "harness console.run",
            "ms",
            taken["harness"],
            taken["raw"],
            BUDGET,
            f"a sample is the median of {count} commands; {spread['harness']}",
        ),
        Result(WHAT, "raw socket", "ms", taken["raw"], note=spread["raw"]),
        Result(
            WHAT,
            "raw socket on Harness' driver",
            "ms",
            taken["raw-driver"],
            taken["raw"],
            note="the guest's share of console.run: the same requests and frames, without the"
            f" library on the host; {spread['raw-driver']}",
        ),
        Result(
            WHAT,
            "raw through a pty",
            "ms",
            taken["raw-pty"],
            taken["raw"],
            note="what the bridge to labgrid's SerialDriver costs",
        ),
    ]
    for name, subject in zip(
        LABGRID, ("labgrid ShellDriver on QEMUDriver", "labgrid ShellDriver on pty"), strict=True
    ):
        if name in taken:
            note = f"a sample is the median of {few} commands; {spread[name]}"
            rows.append(Result(WHAT, subject, "ms", taken[name], taken["raw"], note=note))
        else:
            rows.append(missing(WHAT, subject, "ms", peer.NOT_INSTALLED))
    return rows
