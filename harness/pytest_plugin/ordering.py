"""The order of tests for several workers: the longest first, and no worker waits for another's build.

A run of ``--acceptance`` by several workers of pytest-xdist takes its tests in this order, unless the
user chose ``--dist`` or ``--maxschedchunk``, or another plugin ordered the tests. No test depends on it.

The seconds of a test are those of its last pass on its architecture (in pytest's cache), or else those
of its :mod:`mark <harness.pytest_plugin.tiers>` at the :class:`Pace` of the architecture. :func:`plan`
gives each worker that becomes free the longest test left ("longest processing time first": Graham,
"Bounds on multiprocessing timing anomalies", 1969; at most a third over the best possible end). A test
comes later while another worker makes what it uses, a state or a build, or has a cluster where the host
carries no second one: else its own worker would wait for that.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pytest

from harness.pytest_plugin import session as sessions
from harness.pytest_plugin import tiers

UNKNOWN: Final = 60.0
"""The seconds of a test that has neither been measured nor says what it costs."""

_IMAGE: Final = "image"

_POINTS: Final[Mapping[str, float]] = {
    _IMAGE: 60.0,
    "live": 25.0,
    "installed": 80.0,
    "settled": 10.0,
}
"""What :mod:`harness.points` makes, each from the one before it, and the seconds that the reference host
takes for it; for other things they are :data:`UNKNOWN`. Each test uses the image."""

_CACHE: Final = "harness/seconds"
"""The key in pytest's cache: the seconds of each test by its architecture and its node id."""

_INPUT: Final = "harness_seconds"
"""The key of the measured seconds in a worker's input. All workers have to agree on the order."""

_PACES: Final = "harness_paces"
"""The key of the paces in a worker's input."""

Seconds = Mapping[str, Mapping[str, float]]
"""The measured seconds of tests: by architecture, then by the node id without it."""


class Pace(NamedTuple):
    """How many times the seconds of the reference host an architecture takes here.

    Attributes:
        run: A test, or a state.
        build: A build of the image, which is native on the reference host; 0 if the host has the image.
    """

    run: float = 1.0
    build: float = 1.0


class Use(NamedTuple):
    """What several jobs use, and the first of them makes: its name, and the seconds that it takes."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """Tests that one worker runs in a row.

    Attributes:
        cost: Their seconds.
        uses: What they share with other jobs, in the order in which it is made.
        cluster: Whether they have a cluster: see :func:`clusters`.
    """

    cost: float
    uses: tuple[Use, ...] = ()
    cluster: bool = False


class Turn(NamedTuple):
    """A job in the plan of a worker: its number, and the second at which it starts."""

    number: int
    start: float


def clusters(workers: int) -> int:
    """Return how many clusters a host carries at once.

    It grants two CPUs a worker (:func:`harness.host.admission.workers`); under TCG a cluster of three
    takes three.
    """
    return max(1, 2 * workers // 3)


def plan(jobs: Sequence[Job], workers: int) -> list[list[Turn]]:
    """Return the turns of each worker: one that is free takes the longest of those that wait least."""
    free = [0.0] * workers
    room = [0.0] * clusters(workers)
    turns: list[list[Turn]] = [[] for _ in range(workers)]
    ready: dict[str, float] = {}
    left = sorted(range(len(jobs)), key=lambda number: -jobs[number].cost)
    while left:
        worker = min(range(workers), key=lambda each: free[each])

        def start(number: int, now: float = free[worker]) -> float:
            uses = (use.name for use in jobs[number].uses)
            clear = [min(room)] if jobs[number].cluster else []
            return max([now, *clear, *(ready[name] for name in uses if name in ready)])

        # min() takes the first: the longest.
        chosen = Turn(number := min(left, key=start), start(number))
        left.remove(number)
        turns[worker].append(chosen)
        free[worker] = chosen.start
        for use in jobs[number].uses:
            if use.name not in ready:
                free[worker] += use.seconds
                ready[use.name] = free[worker]
        free[worker] += jobs[number].cost
        if jobs[number].cluster:
            room[room.index(min(room))] = free[worker]
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
    items: Sequence[pytest.Item],
    seconds: Seconds,
    paces: Mapping[str, Pace],
    workers: int,
) -> list[pytest.Item]:
    """Return tests in the order in which pytest-xdist is to deal them.

    Args:
        items: The tests.
        seconds: What was measured.
        paces: The pace of each architecture.
        workers: How many workers there are.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        # Tests that share a machine stay together.
        name = sessions.of(item.config).sharing(item) if is_shared(item) else item.nodeid
        groups.setdefault(name, []).append(item)
    together = list(groups.values())
    jobs = [_job(group, seconds, paces) for group in together]
    return [item for number in dealt(plan(jobs, workers)) for item in together[number]]


def is_shared(item: pytest.Item) -> bool:
    """Return whether a test shares a machine with others of its module."""
    names = getattr(item, "fixturenames", ())
    return "shared_lab" in names and "cut" not in names


def shared_costs(item: pytest.Item) -> list[Use]:
    """Return what a test shares with others and the first makes, but for the image."""
    return [Use(name, _POINTS.get(name, UNKNOWN)) for name in _uses(item) if name != _IMAGE]


def _job(group: Sequence[pytest.Item], seconds: Seconds, paces: Mapping[str, Pace]) -> Job:
    session = sessions.of(group[0].config)
    arch = session.arch_of(group[0])
    pace = paces.get(arch, Pace())
    measured = seconds.get(arch, {})
    cost = sum(
        measured.get(session.plain_id(item.nodeid, arch))
        or (tiers.tier_of(item).cost or UNKNOWN) * pace.run
        for item in group
    )
    uses = (
        Use(
            f"{name} on {arch}",
            _POINTS.get(name, UNKNOWN) * (pace.build if name == _IMAGE else pace.run),
        )
        for name in _uses(group[0])
    )
    return Job(cost, tuple(uses), "cluster" in tiers.needs(group[0]))


def _uses(item: pytest.Item) -> tuple[str, ...]:
    """Return what a test uses, with everything that this is made from."""
    names = set(getattr(item, "fixturenames", ()))
    uses = list(tiers.tier_of(item).uses)
    points = list(_POINTS)
    used = {_IMAGE, *uses, *names & {"live", "installed"}}
    last = max(points.index(point) for point in used if point in points)
    others = [use for use in uses if use not in points]
    if "recorder" in names:
        others.append(f"recording of {item.nodeid.split('::')[0]}")
    return (*points[: last + 1], *others)


def paces(session: sessions.Session) -> dict[str, Pace]:
    """Return the pace of each architecture of a run that the image has.

    The seconds of marks are those of a host without KVM whose architecture is the first of
    :data:`harness.arch.ARCHES`.
    """
    from harness import arch as arches
    from harness.errors import HarnessError

    reference = arches.of(arches.ARCHES[0]).emulation
    by_arch = {}
    with contextlib.suppress(HarnessError):
        for arch in session.present:
            lab = session.lab_on(arch)
            emulation = arches.of(arch).emulation
            accel, built = "tcg", False
            with contextlib.suppress(HarnessError):
                accel = lab.accelerator(arch).name
            with contextlib.suppress(HarnessError):
                built = lab.store.where(lab.image).exists()
            run = (emulation if accel == "tcg" else 1.0) / reference
            build = 1.0 if arch == arches.host() else emulation
            by_arch[arch] = Pace(run, 0.0 if built else build)
    return by_arch


_MEASURED: Final = pytest.StashKey[dict[str, dict[str, float]]]()
_PACE_OF: Final = pytest.StashKey[dict[str, Pace]]()


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
        config.stash[_PACE_OF] = paces(sessions.of(config))


def _numbers(cached: Any) -> dict[str, dict[str, float]]:
    """Return the entries of a cache that are seconds; its file may hold anything."""
    return {
        str(arch): {
            str(name): float(value)
            for name, value in _pairs(tests)
            if isinstance(value, (int, float)) and 0 < value < float("inf")
        }
        for arch, tests in _pairs(cached)
    }


def _pairs(cached: Any) -> Iterable[tuple[Any, Any]]:
    return cached.items() if isinstance(cached, dict) else ()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the measured seconds to a worker of pytest-xdist."""
    if (measured := node.config.stash.get(_MEASURED, None)) is not None:
        node.workerinput[_INPUT] = measured
        paces = node.config.stash[_PACE_OF]
        node.workerinput[_PACES] = {arch: tuple(pace) for arch, pace in paces.items()}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Order the tests of a worker, unless another plugin has."""
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    if _INPUT not in worker:
        yield
        return
    # Private to pytest, so no project that has no machines shall depend on it.
    from _pytest.fixtures import reorder_items

    # pytest itself brings tests together that share a parameter of the session or of their module.
    before = {item: number for number, item in enumerate(reorder_items(items))}
    yield
    places = [before.get(item, 0) for item in items]
    if places == sorted(places):
        paces = {arch: Pace(*pace) for arch, pace in worker[_PACES].items()}
        items[:] = in_order(items, worker[_INPUT], paces, worker["workercount"])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the seconds of tests that passed, for the next run."""
    from harness.pytest_plugin.verdicts import RESULTS

    config = session.config
    cache = getattr(config, "cache", None)
    results = config.stash.get(RESULTS, None)
    if cache is None or results is None or not config.option.acceptance:
        return
    known = _numbers(cache.get(_CACHE, {}))
    passed = [test for test in results.tests.values() if test.outcome == "passed"]
    for test in passed:
        name = sessions.of(config).plain_id(test.id, test.arch)
        known.setdefault(test.arch, {})[name] = round(sum(test.seconds.values()), 1)
    if passed:
        with contextlib.suppress(OSError):
            cache.set(_CACHE, known)
