"""Many forks of one machine alive at once; each answers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.core import Budget, Context, Row, missing
from bench.labs import lab, private
from harness.host.admission import Limits, fork_footprint
from harness.host.capacity import capacity
from harness.machine import Machine
from harness.points import live

COUNTS = (2, 10, 50, 100)
QUICK = (2, 10)
ALIVE = "forks of skiff alive at once, each answering"
BUDGET = Budget(100, at_least=True)
STARTERS = 2


def run(context: Context) -> list[Row]:
    """Start more and more forks; all of them answer after each step."""
    rows = []
    answered = 0
    with lab(context, "skiff") as here, ThreadPoolExecutor(STARTERS) as starters:
        here.state(live)
        room = Limits.of(capacity()).memory // fork_footprint(0, 0)
        forks: list[Machine[Any]] = []
        free = _available()

        def start(number: int) -> Machine[Any]:
            return here.fork(live, name=f"fork{number}", working_set=0)

        for count in (context.pick(1, 0) and COUNTS) or QUICK:
            if count > room:
                reason = f"this host has memory for {room}"
                rows.append(missing(f"{count} forks alive", "skiff", "s", reason))
                continue
            began = time.perf_counter()
            forks += starters.map(start, range(len(forks), count))
            up = time.perf_counter() - began
            began = time.perf_counter()
            for number, machine in enumerate(forks):
                output = machine.console.run(f"echo I am {number}").stdout
                if output != f"I am {number}\n":
                    raise RuntimeError(f"fork {number} of {count} answers {output!r}")
            answer = time.perf_counter() - began
            answered = count
            memory = [private(machine) for machine in forks]
            used = (free - _available()) / 1e6
            context.say(f"{count} forks: {up:.1f} s more to start, all answer in {answer:.2f} s")
            rows += [
                Row(
                    f"{count} forks alive: one answers",
                    "skiff",
                    "s",
                    (answer / count,),
                    note=f"the last of them took {up:.1f} s to start; the host has {used:.0f} MB"
                    " less to give than before the first",
                ),
                Row(f"{count} forks alive: private memory", "skiff", "MB", tuple(memory)),
            ]
        for machine in forks:
            machine.stop()
    budget = None if context.quick else BUDGET
    return [Row(ALIVE, "harness", "", (answered,), budget=budget), *rows]


def _available() -> int:
    """Return the bytes that the host can give without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")
