"""The order of tests: both workers end together, and none waits for what the other makes."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.project import Project
from harness import arch as arches
from harness.pytest_plugin.ordering import Job, Pace, Use, dealt, paces, plan


def ends(jobs: list[Job], order: list[int], workers: int) -> list[float]:
    """Return when each worker ends, as pytest-xdist deals the jobs: two each, then one at a time."""
    left = list(order)
    if len(left) < 2 * workers:
        held = [left[number::workers] for number in range(workers)]
        left = []
    else:
        held = [[left.pop(0), left.pop(0)] for _ in range(workers)]
    # A worker gets the next job when it has finished one.
    times = [jobs[queue[0]].cost if queue else 0 for queue in held]
    while any(held):
        worker = min((n for n in range(workers) if held[n]), key=lambda n: times[n])
        held[worker].pop(0)
        if left:
            held[worker].append(left.pop(0))
        if held[worker]:
            times[worker] += jobs[held[worker][0]].cost
    return times


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


IMAGE, SETTLED = Use("image", 60), Use("settled", 10)


def test_what_a_worker_makes_the_other_does_not_wait_for() -> None:
    jobs = [
        Job(100, (IMAGE, SETTLED)),
        Job(90, (IMAGE, SETTLED)),
        Job(50, (IMAGE,)),
        Job(40, (IMAGE, Use("2", 60))),
    ]
    first, second = ([turn.number for turn in turns] for turns in plan(jobs, 2))
    assert first[0] == 0
    # Both wait for the image; the state is ready when the second has done what needs the image alone.
    assert second[:2] == [2, 1]


def test_a_host_that_carries_one_cluster_has_no_two_at_once() -> None:
    jobs = [Job(50, cluster=True), Job(40, cluster=True), Job(30), Job(20), Job(10)]
    first, second = ([turn.number for turn in turns] for turns in plan(jobs, 2))
    assert (first, second) == ([0, 1], [2, 3, 4])
    alone = [Job(50, cluster=True), Job(40, cluster=True), Job(30)]
    starts = {turn.number: turn.start for turns in plan(alone, 2) for turn in turns}
    assert starts == {0: 0, 1: 50, 2: 0}


def test_a_large_host_has_several_clusters_at_once() -> None:
    jobs = [Job(50, cluster=True), Job(40, cluster=True), Job(30, cluster=True)]
    starts = {turn.number: turn.start for turns in plan(jobs, 3) for turn in turns}
    assert starts == {0: 0, 1: 0, 2: 40}


def test_points_of_one_recording_wait_until_it_is_made() -> None:
    recording = Use("recording", 60)
    jobs = [Job(50, (recording,)), Job(50, (recording,)), Job(20), Job(30)]
    first, second = ([turn.number for turn in turns] for turns in plan(jobs, 2))
    assert (first, second) == ([0], [3, 2, 1])


NOTE = """
import pathlib, pytest

@pytest.fixture(autouse=True)
def note(request, worker_id):
    with pathlib.Path(f"order-{worker_id}").open("a") as file:
        print(request.node.name, file=file)
"""

SUITE = """
import pytest

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


def order(
    project: Project, *options: str, suite: str = SUITE, cache: str = "no:cacheprovider"
) -> list[list[str]]:
    """Return the tests of each worker, in their order; the workers in the order of their first tests."""
    for path in project.folder.glob("order-*"):
        path.unlink()
    project.write("test_suite.py", NOTE + suite)
    result = project.run(
        *(project.python, "-m", "pytest", "-p", cache, "-p", "no:labgrid", "--image", "micro"),
        *("--acceptance", "test_suite.py", *options),
    )
    assert result.status == 0, result.text
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
    result = project.pytest("--image", "micro", "-n", "2", *options)
    assert result.status == 0, result.text
    assert f"chunk {chunk}\n" in result.text


def test_the_order_of_another_plugin_stays(project: Project) -> None:
    project.write("conftest.py", "def pytest_collection_modifyitems(items):\n    items.reverse()\n")
    first = sorted(names[:2] for names in order(project, "-n", "2"))
    assert first == [["test_middle", "test_long"], ["test_shorter", "test_short"]]


IMAGES = """
import pytest

@pytest.mark.tier("gate", cost=100)
def test_long(image): ...

@pytest.mark.tier("gate", cost=90)
def test_middle(image): ...

@pytest.mark.tier("gate", cost=9)
def test_short(image): ...

@pytest.mark.tier("gate", cost=8)
def test_shorter(image): ...
"""

SLOWER = arches.of("aarch64").emulation / arches.of("x86_64").emulation

BOTH = ("-n", "2", "--arch", "x86_64,aarch64", "--accel", "tcg")


def test_the_longest_tests_of_each_architecture_come_first(project: Project) -> None:
    (names,) = order(project, *BOTH, "-n", "1", suite=IMAGES)
    assert {*names[:2]} == {"test_long[x86_64]", "test_long[aarch64]"}
    assert {*names[2:4]} == {"test_middle[x86_64]", "test_middle[aarch64]"}


@pytest.mark.parametrize(
    ("accels", "built", "expected"),
    [
        (("tcg", "tcg"), True, [Pace(1, 0), Pace(SLOWER, 0)]),
        (("tcg", "tcg"), False, [Pace(1, 1), Pace(SLOWER, arches.of("aarch64").emulation)]),
        (("kvm", "tcg"), True, [Pace(1 / arches.of("x86_64").emulation, 0), Pace(SLOWER, 0)]),
    ],
)
def test_the_pace_of_an_architecture_is_that_of_its_accelerator(
    monkeypatch: pytest.MonkeyPatch,
    accels: tuple[str, str],
    built: bool,
    expected: list[Pace],
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    of = dict(zip(("x86_64", "aarch64"), accels, strict=True))
    lab = SimpleNamespace(
        image=None,
        accelerator=lambda arch: SimpleNamespace(name=of[arch]),
        store=SimpleNamespace(where=lambda image: SimpleNamespace(exists=lambda: built)),
    )
    session: Any = SimpleNamespace(present=tuple(of), lab_on=lambda arch: lab)
    assert list(paces(session)) == list(of)
    assert [pytest.approx(pace) for pace in paces(session).values()] == expected


def test_tests_that_share_a_machine_stay_together_on_each_architecture(project: Project) -> None:
    text = IMAGES.replace("cost=90", "cost=60").replace("cost=9)", "cost=60)")
    text = text.replace("cost=100", "cost=50")
    text = text.replace("middle(image)", "middle(shared_lab)").replace(
        "short(image)", "short(shared_lab)"
    )
    (names,) = order(project, *BOTH, "-n", "1", suite=text)
    pairs = [[f"test_{name}[{arch}]" for name in ("middle", "short")] for arch in arches.ARCHES]
    assert [names[:2], names[2:4]] in (pairs, pairs[::-1])


def test_seconds_are_measured_for_each_architecture(project: Project) -> None:
    cache = "no:randomly"
    order(project, *BOTH, suite=IMAGES, cache=cache)
    path = project.folder / ".pytest_cache/v/harness/seconds"
    measured = json.loads(path.read_text())
    names = {f"test_suite.py::test_{name}" for name in ("long", "middle", "short", "shorter")}
    assert {arch: set(tests) for arch, tests in measured.items()} == {
        "x86_64": names,
        "aarch64": names,
    }
    # A run of one architecture knows what a run of several has measured.
    for arch, first in (("x86_64", "test_short"), ("aarch64", "test_shorter")):
        measured[arch][f"test_suite.py::{first}"] = 500
        path.write_text(json.dumps(measured))
        names_of = order(project, "-n", "2", "--arch", arch, suite=IMAGES, cache=cache)
        assert first in (names_of[0][0], names_of[1][0])
    path.write_text(json.dumps(measured))
    firsts = {names[0] for names in order(project, *BOTH, suite=IMAGES, cache=cache)}
    assert firsts == {"test_short[x86_64]", "test_shorter[aarch64]"}


def test_pytests_own_order_of_parameters_is_no_order_of_another_plugin(project: Project) -> None:
    text = IMAGES.replace(
        "import pytest\n",
        "import pytest\n\n@pytest.fixture(scope='module', params=[1, 2])\ndef kind(request): ...\n",
    ).replace("(image)", "(image, kind)")
    first, second = order(project, "-n", "2", suite=text)
    assert {first[0][:-3], second[0][:-3]} == {"test_long"}


def test_measured_seconds_replace_those_of_the_marks(project: Project) -> None:
    cache = "no:randomly"  # any plugin that is not there: the cache stays
    order(project, "-n", "2", cache=cache)
    path = project.folder / ".pytest_cache/v/harness/seconds"
    assert "test_suite.py::test_long" in json.loads(path.read_text())[""]
    measured = {"test_suite.py::test_short": 500, "test_suite.py::test_long": 2}
    path.write_text(json.dumps({"": measured}))
    assert order(project, "-n", "2", cache=cache)[1][0] == "test_short"
    for other in (["of another form"], {"test_suite.py::test_short": 500}):
        path.write_text(json.dumps(other))
        assert order(project, "-n", "2", cache=cache)[0][0] == "test_long"
