"""The order of tests for several workers: the longest first, and no worker waits for another's build.

A run of ``--acceptance`` by several workers of pytest-xdist takes its tests in this order, unless the
user chose ``--dist`` or ``--maxschedchunk``, or another plugin ordered the tests. No test depends on it.

The seconds of a test are those of its last pass (in pytest's cache), or else those of its
:mod:`mark <harness.pytest_plugin.tiers>`. :func:`plan` gives each worker that becomes free the longest
test left ("longest processing time first": Graham, "Bounds on multiprocessing timing anomalies", 1969;
at most a third over the best possible end). A test comes later while another worker makes what it uses,
a state or a build: else its own worker would wait for that.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pytest

from harness.pytest_plugin import tiers

UNKNOWN: Final = 60.0
"""The seconds of a test that has neither been measured nor says what it costs."""

_POINTS: Final = ("image", "live", "installed", "settled")
"""What :mod:`harness.points` makes, each from the one before it. Each test uses the image."""

_MAKING: Final[Mapping[str, float]] = {
    "image": 60.0,
    "live": 25.0,
    "installed": 80.0,
    "settled": 10.0,
}
"""The seconds that the reference host takes to make them; other things are :data:`UNKNOWN`."""

_CACHE: Final = "harness/seconds"
"""The key in pytest's cache: the seconds of each test by its node id."""

_INPUT: Final = "harness_seconds"
"""The key of the measured seconds in a worker's input. All workers have to agree on the order."""


@dataclass(frozen=True, slots=True)
class Job:
    """Tests that one worker runs in a row.

    Attributes:
        cost: Their seconds.
        uses: What they share with other jobs, in the order in which it is made.
    """

    cost: float
    uses: tuple[str, ...] = ()


class Turn(NamedTuple):
    """A job in the plan of a worker: its number, and the second at which it starts."""

    number: int
    start: float


def plan(jobs: Sequence[Job], workers: int) -> list[list[Turn]]:
    """Return the turns of each worker: one that is free takes the longest of those that wait least."""
    free = [0.0] * workers
    turns: list[list[Turn]] = [[] for _ in range(workers)]
    ready: dict[str, float] = {}
    left = sorted(range(len(jobs)), key=lambda number: -jobs[number].cost)
    while left:
        worker = min(range(workers), key=lambda each: free[each])

        def start(number: int, now: float = free[worker]) -> float:
            return max([now, *(ready[use] for use in jobs[number].uses if use in ready)])

        # min() takes the first: the longest.
        chosen = Turn(number := min(left, key=start), start(number))
        left.remove(number)
        turns[worker].append(chosen)
        free[worker] = chosen.start
        for use in jobs[number].uses:
            if use not in ready:
                free[worker] += _MAKING.get(use, UNKNOWN)
                ready[use] = free[worker]
        free[worker] += jobs[number].cost
    return turns


def dealt(turns: Sequence[Sequence[Turn]]) -> list[int]:
    """Return the jobs in the order in which pytest-xdist has to deal them, so that the plan comes about.

    A worker of its ``LoadScheduling`` holds two tests: the one that it runs, and the next. So at first
    each worker gets two in a row, and then another one whenever it starts the last that it has. Where
    there are fewer than two for each worker, each gets one, in turn.
    """
    queues = sorted(map(list, turns), key=len, reverse=True)
    if sum(map(len, queues)) < 2 * len(queues):
        rounds = itertools.zip_longest(*queues)
        return [turn.number for each in rounds for turn in each if turn is not None]
    for queue in queues:
        if len(queue) < 2:
            # It gets a second test all the same: the last, which is among the shortest.
            queue.append(max(queues, key=len).pop())
    later = [
        (before.start, worker, turn.number)
        for worker, queue in enumerate(queues)
        for before, turn in itertools.pairwise(queue[1:])
    ]
    first = [turn.number for queue in queues for turn in queue[:2]]
    return [*first, *(number for *_, number in sorted(later))]


def in_order(
    items: Sequence[pytest.Item], seconds: Mapping[str, float], workers: int
) -> list[pytest.Item]:
    """Return tests in the order in which pytest-xdist is to deal them.

    Args:
        items: The tests.
        seconds: What was measured, by node id.
        workers: How many workers there are.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        # Tests that share a machine stay together.
        names = getattr(item, "fixturenames", ())
        shared = "shared_lab" in names and "cut" not in names
        groups.setdefault(item.nodeid.split("::")[0] if shared else item.nodeid, []).append(item)
    together = list(groups.values())
    jobs = [
        Job(sum(_seconds(item, seconds) for item in group), _uses(group[0])) for group in together
    ]
    return [item for number in dealt(plan(jobs, workers)) for item in together[number]]


def _seconds(item: pytest.Item, seconds: Mapping[str, float]) -> float:
    return seconds.get(item.nodeid) or tiers.tier_of(item).cost or UNKNOWN


def _uses(item: pytest.Item) -> tuple[str, ...]:
    """Return what a test uses, with everything that this is made from."""
    names = set(getattr(item, "fixturenames", ()))
    uses = list(tiers.tier_of(item).uses)
    points = {"image", *uses, *names & {"live", "installed"}}
    last = max(_POINTS.index(point) for point in points if point in _POINTS)
    others = [use for use in uses if use not in _POINTS]
    if "recorder" in names:
        others.append(f"recording of {item.nodeid.split('::')[0]}")
    return (*_POINTS[: last + 1], *others)


_MEASURED: Final = pytest.StashKey[dict[str, float]]()


# --- in a run ---------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist deal one test at a time, unless the user chose how it deals."""
    option = config.option
    if hasattr(config, "workerinput") or not option.acceptance:
        return
    if getattr(option, "dist", "no") == "load" and option.maxschedchunk is None:
        option.maxschedchunk = 1
        cache = getattr(config, "cache", None)
        config.stash[_MEASURED] = _numbers(cache.get(_CACHE, {}) if cache is not None else {})


def _numbers(cached: Any) -> dict[str, float]:
    """Return the entries of a cache that are seconds; its file may hold anything."""
    pairs = cached.items() if isinstance(cached, dict) else ()
    return {
        str(name): float(value)
        for name, value in pairs
        if isinstance(value, (int, float)) and 0 < value < float("inf")
    }


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the measured seconds to a worker of pytest-xdist."""
    if (measured := node.config.stash.get(_MEASURED, None)) is not None:
        node.workerinput[_INPUT] = measured


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Order the tests of a worker, unless another plugin has."""
    before = {item: number for number, item in enumerate(items)}
    yield
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    if _INPUT not in worker:
        return
    places = [before.get(item, 0) for item in items]
    if places == sorted(places):
        items[:] = in_order(items, worker[_INPUT], worker["workercount"])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the seconds of tests that passed, for the next run."""
    from harness.pytest_plugin.verdicts import RESULTS

    config = session.config
    cache = getattr(config, "cache", None)
    results = config.stash.get(RESULTS, None)
    if cache is None or results is None or not config.option.acceptance:
        return
    passed = {
        test.id: round(sum(test.seconds.values()), 1)
        for test in results.tests.values()
        if test.outcome == "passed"
    }
    if passed:
        with contextlib.suppress(OSError):
            cache.set(_CACHE, {**_numbers(cache.get(_CACHE, {})), **passed})
