"""The order of tests: both workers end together, and none waits for what the other makes."""

from __future__ import annotations

import json
import random

import pytest

from fixtures.project import Project
from harness.pytest_plugin.ordering import Job, dealt, plan


def ends(jobs: list[Job], order: list[int], workers: int) -> list[float]:
    """Return when each worker ends, as pytest-xdist deals the jobs: two each, then one at a time."""
    left = list(order)
    if len(left) < 2 * workers:
        held = [left[number::workers] for number in range(workers)]
        left = []
    else:
        held = [[left.pop(0), left.pop(0)] for _ in range(workers)]
    # A worker gets the next job when it has finished one.
    done = [jobs[queue[0]].cost if queue else 0 for queue in held]
    while any(held):
        worker = min((n for n in range(workers) if held[n]), key=lambda n: done[n])
        held[worker].pop(0)
        if left:
            held[worker].append(left.pop(0))
        if held[worker]:
            done[worker] += jobs[held[worker][0]].cost
    return done


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_end_together(workers: int) -> None:
    chance = random.Random(7)
    jobs = [Job(chance.choice([5, 8, 13, 40, 80, 150, 300])) for _ in range(60)]
    order = dealt(plan(jobs, workers))
    assert sorted(order) == list(range(60))
    best = max(*(job.cost for job in jobs), sum(job.cost for job in jobs) / workers)
    # In the order of their numbers, eight workers end at 1.4 times the best.
    assert max(ends(jobs, order, workers)) < 1.1 * best


def test_no_long_job_waits_behind_the_longest() -> None:
    jobs = [Job(1), Job(4), Job(4), Job(20), Job(1), Job(1)]
    # Each worker holds two jobs, so that one has to wait there: the shortest.
    assert max(ends(jobs, dealt(plan(jobs, 2)), 2)) == 21


@pytest.mark.parametrize("count", range(8))
def test_a_few_jobs_are_dealt_once_each(count: int) -> None:
    order = dealt(plan([Job(10 + number) for number in range(count)], 4))
    assert sorted(order) == list(range(count))


def test_what_a_worker_makes_the_other_does_not_wait_for() -> None:
    jobs = [
        Job(100, ("image", "settled")),
        Job(90, ("image", "settled")),
        Job(50, ("image",)),
        Job(40, ("image", "2")),
    ]
    first, second = ([turn.number for turn in turns] for turns in plan(jobs, 2))
    assert first[0] == 0
    # Both wait for the image; the state is ready when the second has done what needs the image alone.
    assert second[:2] == [2, 1]


def test_points_of_one_recording_wait_until_it_is_made() -> None:
    jobs = [Job(50, ("recording",)), Job(50, ("recording",)), Job(20), Job(30)]
    first, second = ([turn.number for turn in turns] for turns in plan(jobs, 2))
    assert (first, second) == ([0], [3, 2, 1])


SUITE = """
import pathlib, pytest

@pytest.fixture(autouse=True)
def note(request, worker_id):
    with pathlib.Path(f"order-{worker_id}").open("a") as file:
        print(request.node.name, file=file)

def test_unknown(): ...

@pytest.mark.tier("gate", cost=200)
def test_long(): ...

@pytest.mark.tier("gate", cost=70)
def test_middle(): ...

@pytest.mark.tier("gate", cost=9)
def test_short(): ...

@pytest.mark.tier("gate", cost=8)
def test_shorter(): ...
"""


def order(project: Project, *options: str, cache: str = "no:cacheprovider") -> list[list[str]]:
    """Return the tests of each worker, in their order; the workers in the order of their first tests."""
    for path in project.folder.glob("order-*"):
        path.unlink()
    project.write("test_suite.py", SUITE)
    done = project.run(
        *(project.python, "-m", "pytest", "-p", cache, "-p", "no:labgrid", "--image", "micro"),
        *("--acceptance", "test_suite.py", *options),
    )
    assert done.status == 0, done.text
    return sorted(path.read_text().split() for path in project.folder.glob("order-*"))


def test_several_workers_begin_with_the_longest(project: Project) -> None:
    # gw1 may have taken the last test by the time that gw0 has run its first one.
    first = [names[:2] for names in order(project, "-n", "2")]
    assert first == [["test_long", "test_shorter"], ["test_middle", "test_unknown"]]


@pytest.mark.parametrize("options", [(), ("-n", "2", "--maxschedchunk", "5")])
def test_the_order_of_the_file_stays(project: Project, options: tuple[str, ...]) -> None:
    """One worker gains nothing by another order; a user who says how tests are dealt is obeyed."""
    names = order(project, *options)
    assert names[0 if not options else -1][0] == "test_unknown"


@pytest.mark.parametrize(
    ("options", "chunk"),
    [
        (("--acceptance", "test_suite.py"), "1"),
        (("--acceptance", "test_suite.py", "--maxschedchunk", "3"), "3"),
        (("--acceptance", "test_suite.py", "--dist", "worksteal"), "None"),
        ((), "None"),
    ],
)
def test_tests_are_dealt_one_at_a_time_where_an_image_is_judged(
    project: Project, options: tuple[str, ...], chunk: str
) -> None:
    project.write("test_suite.py", "def test_it(): ...\n")
    project.write(
        "conftest.py",
        "def pytest_terminal_summary(terminalreporter, config):\n"
        "    terminalreporter.write_line(f'chunk {config.option.maxschedchunk}')\n",
    )
    done = project.pytest("--image", "micro", "-n", "2", *options)
    assert done.status == 0, done.text
    assert f"chunk {chunk}\n" in done.text


def test_the_order_of_another_plugin_stays(project: Project) -> None:
    project.write("conftest.py", "def pytest_collection_modifyitems(items):\n    items.reverse()\n")
    first = sorted(names[:2] for names in order(project, "-n", "2"))
    assert first == [["test_middle", "test_long"], ["test_shorter", "test_short"]]


def test_measured_seconds_replace_those_of_the_marks(project: Project) -> None:
    cache = "no:randomly"  # any plugin that is not there: the cache stays
    order(project, "-n", "2", cache=cache)
    path = project.folder / ".pytest_cache/v/harness/seconds"
    assert set(json.loads(path.read_text())) >= {"test_suite.py::test_long"}
    path.write_text(json.dumps({"test_suite.py::test_short": 500, "test_suite.py::test_long": 2}))
    assert order(project, "-n", "2", cache=cache)[1][0] == "test_short"
    path.write_text('["of another form"]')
    assert order(project, "-n", "2", cache=cache)[0][0] == "test_long"
