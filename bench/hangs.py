"""Reboots of micro and skiff, many at once: how many hang.

The guests are each other's load: busy programs beside them would only take time in which more guests
reboot.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bench.core import Budget, Context, Row
from bench.labs import lab
from harness.errors import HarnessError, Verdict
from harness.points import installed, live
from harness.states import State

GUESTS: Final = 10
REBOOTS: Final[dict[str, tuple[State, int]]] = {"micro": (live, 1000), "skiff": (installed, 100)}
"""The point that the guests of an image start from, and the number of their reboots."""

BUDGET: Final = Budget(0)


def run(context: Context) -> list[Row]:
    """Let forks of each image reboot."""
    return [
        count(context, image, point, context.pick(reboots, GUESTS))
        for image, (point, reboots) in REBOOTS.items()
    ]


def count(context: Context, image: str, point: State, wanted: int) -> Row:
    """Let forks of a state reboot; a reboot that does not end is a hang.

    A guest whose reboot fails is given up and another fork takes its place, so that each hang counts
    once. Any other failure ends the benchmark.
    """
    completed = 0
    hangs: list[str] = []
    with lab(context, image) as here:
        here.state(point)

        def reboots(guest: int, count: int) -> None:
            nonlocal completed
            left = count
            while left:
                # Each fork has a scope of its own: a hang of one does not end the others.
                with here.child(f"guest {guest}, {left} to go") as own:
                    machine = own.fork(point, name=f"guest{guest}")
                    while left:
                        left -= 1
                        try:
                            machine.reboot()
                        except HarnessError as error:
                            if error.verdict not in (Verdict.TIMEOUT, Verdict.INFRA):
                                raise
                            hangs.append(error.what)
                            context.say(f"guest {guest}: {error}")
                            break
                        completed += 1
                        context.say(f"guest {guest}: {count - left} of {count}; {len(hangs)} hangs")

        with ThreadPoolExecutor(GUESTS) as pool:
            for ended in [pool.submit(reboots, n, wanted // GUESTS) for n in range(GUESTS)]:
                ended.result()
    tried = completed + len(hangs)
    return Row(
        f"hangs per 1,000 reboots of {image}, {GUESTS} guests at once",
        "harness",
        "",
        (1000 * len(hangs) / tried,),
        budget=BUDGET,
        note=f"{len(hangs)} in {tried} reboots" + "".join(f"; {hang}" for hang in hangs),
    )
