"""The gate of this checkout: what a change of each of its files selects.

pytest collects all suites once, with the trace of :mod:`harness.gate.trace`.
"""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from harness.gate import planner
from harness.gate.plan import Plan
from harness.gate.planner import Options, Project
from harness.gate.select import inputs
from harness.gate.timings import Timings
from tests.programs import need

ROOT = Path(__file__).resolve().parents[2]
# One job for each suite of an image: how tests are packed is not the question.
OPTIONS = Options(tier="nightly", arch="all", since="main", target=1e9)


@pytest.fixture(scope="module")
def checkout() -> Project:
    return planner.gather(ROOT, dataclasses.replace(OPTIONS, since=None), Timings())


def tracked_files() -> list[str]:
    need("git")
    process = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if process.returncode:
        pytest.skip("git knows no files here: run it in a clone of the repository")
    return process.stdout.strip("\0").split("\0")


def planned(checkout: Project, *changed: str, tier: str = "nightly") -> Plan:
    options = dataclasses.replace(OPTIONS, tier=tier)
    return planner.make(dataclasses.replace(checkout, changed=changed), options)


def images(plan: Plan) -> set[str]:
    return {job.image for job in plan.jobs}


def suites(plan: Plan) -> set[str]:
    return {test.partition("/")[0] for job in plan.jobs for test in job.tests}


def test_of_each_tracked_file_the_plan_is_not_empty_or_says_why(checkout: Project) -> None:
    empty = {}
    for path in tracked_files():
        plan = planned(checkout, path)
        assert bool(plan.jobs) != bool(plan.empty), path
        assert all(row.why for row in plan.images), path
        assert all(job.why for job in plan.jobs), path
        if plan.empty:
            empty[path] = plan.empty
            assert path in plan.empty
    # Nothing that guests, suites or the library are made of is without a test.
    parts = ("harness/", "fixtures/", "images/skiff/mkosi", "images/micro/root", "requirements/")
    assert [path for path in empty if path.startswith(parts)] == []
    assert {"README.md", "docs/how-to/suites.md"} <= set(empty)
    suites_without = [path for path in empty if path.startswith(("suites/", "tests/integration/"))]
    assert suites_without == []


def test_no_scenario_that_opens_a_file_is_left_out_by_a_change_of_it(checkout: Project) -> None:
    """What the trace has seen of a file of tests selects each of its tests, on each image."""
    using: dict[str, set[tuple[str, str, str]]] = {}
    for (suite, reference), collection in checkout.collections.items():
        for file, used in collection.files.items():
            for path in (file, *used):
                using.setdefault(path, set()).add((suite, reference, file))
    assert "tests/moments.py" in using
    for path, users in using.items():
        changed = f"{path}new" if path.endswith("/") else path
        selection = planner.selection_of(dataclasses.replace(checkout, changed=(changed,)))
        for suite, reference, file in users:
            for test in checkout.collections[suite, reference].tests:
                if test.file == file:
                    assert selection.of(reference, suite, file, test.tier), (changed, test.id)


def test_no_image_that_is_made_of_a_file_is_left_out_by_a_change_of_it(checkout: Project) -> None:
    for candidate in checkout.candidates:
        for path in inputs(candidate.image, ROOT):
            for changed in (path, f"{path}/below") if (ROOT / path).is_dir() else (path,):
                plan = planned(checkout, changed)
                if candidate.image.select().unpinned:
                    assert f"{candidate.image.name} on x86_64: the digest" in plan.empty, changed
                else:
                    assert candidate.image.name in images(plan), changed


def test_a_change_of_harness_is_all_of_micro_and_the_smoke_of_skiff(checkout: Project) -> None:
    everything = planner.make(dataclasses.replace(checkout, changed=None), OPTIONS)
    for path in ("harness/console/stream.py", "run", "pyproject.toml", "requirements/dev.lock"):
        plan = planned(checkout, path)
        mine = {row.image: row.tests for row in plan.images if row.arch == "x86_64"}
        whole = {row.image: row.tests for row in everything.images if row.arch == "x86_64"}
        assert mine["micro"] == whole["micro"], path
        assert 0 < mine["skiff"] < whole["skiff"] / 4, path


def test_changes_select_what_they_touch(checkout: Project) -> None:
    skiff = "images/skiff/mkosi/mkosi.conf"
    assert images(planned(checkout, skiff)) == {"skiff", "skiff-testing"}
    # Debian changes testing every day, so it decides about no change.
    assert images(planned(checkout, skiff, tier="gate")) == {"skiff"}
    assert images(planned(checkout, "images/skiff-testing/build", tier="gate")) == {"skiff-testing"}
    micro = planned(checkout, "images/micro/root/init")
    assert images(micro) == {"micro"}
    assert suites(micro) == {"suites", "tests"}
    boot = planned(checkout, "suites/boot/test_live.py")
    assert images(boot) >= {"micro", "skiff"}
    # test_cli and test_front_door run this file; the trace knows.
    files = {test.partition("::")[0] for job in boot.jobs for test in job.tests}
    assert "suites/boot/test_live.py" in files
    assert not {file for file in files if file.startswith("suites/")} - {"suites/boot/test_live.py"}
    for path in ("conftest.py", "fixtures/project.py", "gate.yaml", "something/new"):
        assert suites(planned(checkout, path)) == {"suites", "tests"}, path
        assert images(planned(checkout, path)) >= {"micro", "skiff"}, path


def test_the_slowest_shard_takes_little_more_than_the_mean(checkout: Project) -> None:
    plan = planner.make(dataclasses.replace(checkout, changed=None), Options())
    by_suite: dict[tuple[str, str], list[float]] = {}
    for job in plan.jobs:
        key = (job.image, job.tests[0].partition("/")[0])
        by_suite.setdefault(key, []).append(job.seconds)
    for key, seconds in by_suite.items():
        assert max(seconds) <= 1.15 * sum(seconds) / len(seconds), key
