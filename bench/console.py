"""A command on the console: the time from sending it to having its output and status."""

from __future__ import annotations

import statistics
from functools import partial

from bench import peer, side
from bench.core import Budget, Context, Row, missing, paired
from bench.guest import Guest

MEASUREMENT = "console command"
BUDGET = Budget(2.0)
LABGRID = ("labgrid-qemu", "labgrid-serial")


def run(context: Context) -> list[Row]:
    """Run ``echo hello`` through each side of one guest, in turns."""
    rounds = context.pick(7, 2)
    count = context.pick(200, 30)
    few = context.pick(15, 5)
    names = ["raw", "harness", "raw-driver", "raw-pty"]
    if peer.version():
        names += LABGRID
    singles: dict[str, list[float]] = {name: [] for name in names}

    with Guest(context.folder, "latency") as guest:
        guest.login()

        def turn(name: str) -> float:
            number = few if name in LABGRID else count
            answer = side.ask(guest, name, "commands", count=number, folder=str(context.folder))
            samples: list[float] = [1000 * seconds for seconds in answer["samples"]]
            singles[name] += samples
            return statistics.median(samples)

        medians = paired(rounds, {name: partial(turn, name) for name in names}, context.say)
    spread = {
        name: f"of single commands: n={len(times)}, min {min(times):.2f}, max {max(times):.2f} ms"
        for name, times in singles.items()
    }
    rows = [
        Row(
            MEASUREMENT,
            "harness console.run",
            "ms",
            medians["harness"],
            medians["raw"],
            BUDGET,
            f"a sample is the median of {count} commands; {spread['harness']}",
        ),
        Row(MEASUREMENT, "raw wire", "ms", medians["raw"], note=spread["raw"]),
        Row(
            MEASUREMENT,
            "raw wire on Harness' driver",
            "ms",
            medians["raw-driver"],
            medians["raw"],
            note="the guest's share of console.run: the same requests and frames, without the"
            f" library on the host; {spread['raw-driver']}",
        ),
        Row(
            MEASUREMENT,
            "raw through a pty",
            "ms",
            medians["raw-pty"],
            medians["raw"],
            note="the cost of the bridge to labgrid's SerialDriver",
        ),
    ]
    for name, subject in zip(
        LABGRID, ("labgrid ShellDriver on QEMUDriver", "labgrid ShellDriver on pty"), strict=True
    ):
        if name in medians:
            note = f"a sample is the median of {few} commands; {spread[name]}"
            rows.append(Row(MEASUREMENT, subject, "ms", medians[name], medians["raw"], note=note))
        else:
            rows.append(missing(MEASUREMENT, subject, "ms", peer.NOT_INSTALLED))
    return rows
