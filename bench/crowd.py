"""Many forks of one machine alive at once, each answering."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.core import Budget, Context, Result, missing
from bench.states import private, stage
from fixtures.points import live
from harness.admission import Limits, fork_footprint
from harness.host import capacity
from harness.machine import Machine

COUNTS = (2, 10, 50, 100)
QUICK = (2, 10)
ALIVE = "forks of skiff alive at once, each answering"
BUDGET = Budget(100, at_least=True)
STARTERS = 2


def run(context: Context) -> list[Result]:
    """Start more and more forks; all of them answer after each step."""
    rows = []
    answered = 0
    with stage(context, "skiff") as here, ThreadPoolExecutor(STARTERS) as starters:
        here.states.lease(live)
        room = Limits.of(capacity()).memory // fork_footprint(0, 0)
        forks: list[Machine] = []
        free = _available()

        def start(number: int) -> Machine:
            return here.fork_of(live, name=f"fork{number}", working_set=0)

        for count in (context.pick(1, 0) and COUNTS) or QUICK:
            if count > room:
                why = f"this host has memory for {room}"
                rows.append(missing(f"{count} forks alive", "skiff", "s", why))
                continue
            began = time.perf_counter()
            forks += starters.map(start, range(len(forks), count))
            up = time.perf_counter() - began
            began = time.perf_counter()
            for number, machine in enumerate(forks):
                told = machine.console.run(f"echo I am {number}").stdout
                if told != f"I am {number}\n":
                    raise RuntimeError(f"fork {number} of {count} answers {told!r}")
            answer = time.perf_counter() - began
            answered = count
            each = [private(machine) for machine in forks]
            taken = (free - _available()) / 1e6
            context.say(f"{count} forks: {up:.1f} s more to start, all answer in {answer:.2f} s")
            rows += [
                Result(
                    f"{count} forks alive: one answers",
                    "skiff",
                    "s",
                    (answer / count,),
                    note=f"the last of them took {up:.1f} s to start; the host has {taken:.0f} MB"
                    " less to give than before the first",
                ),
                Result(f"{count} forks alive: private memory", "skiff", "MB", tuple(each)),
            ]
        for machine in forks:
            machine.stop()
    budget = None if context.quick else BUDGET
    return [Result(ALIVE, "harness", "", (answered,), budget=budget), *rows]


def _available() -> int:
    """Return the bytes that the host can give without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")
