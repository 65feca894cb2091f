"""plan.json: what is written is read again, and a wrong file says where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UnknownNameError, UsageError
from harness.gate import plan as plans
from harness.gate.plan import ImageRow, Job, Needs, Plan
from tests import gate_plans


def a_job(name: str = "kite-x86-64-1", **changes: Any) -> Job:
    facts = {
        "image": "kite",
        "shard": "1/2",
        "states": ("live",),
        "why": "images/kite/build changed",
        "needs": Needs(memory=1536, cpus=2, disk=4096),
        "seconds": 12.5,
        "timeout_minutes": 20,
        "labels": ("harness",),
    }
    return gate_plans.a_job(name, f"suites/boot/test_live.py::test_{name}", **(facts | changes))


def a_plan(*jobs: Job, **changes: Any) -> Plan:
    facts = {
        "since": "main",
        "changed": ("images/kite/build",),
        "images": (ImageRow("kite", "x86_64", True, "it changed", 2, {"tier": 1}),),
    }
    return gate_plans.sealed(gate_plans.a_plan(*jobs, **(facts | changes)))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = a_plan(a_job(), a_job("kite-x86-64-2", shard="2/2"))
    path = tmp_path / "plan.json"
    plans.write(plan, path)
    assert plans.read(path) == plan
    assert json.loads(path.read_text())["format"] == 1
    assert plan.job("kite-x86-64-2").shard == "2/2"
    with pytest.raises(UnknownNameError, match="kite-x86-64-3"):
        plan.job("kite-x86-64-3")


def test_the_id_is_of_the_content_and_of_no_time() -> None:
    plan = a_plan(a_job())
    assert len(plan.id) == 16
    assert plans.digest(dataclasses.replace(plan, created="2027-01-01T00:00:00Z")) == plan.id
    assert plans.digest(dataclasses.replace(plan, attempt=2)) == plan.id
    for changes in (
        {"commit": "2" * 40},
        {"dirty": True},
        {"since": None},
        {"changed": ()},
        {"tier": "nightly"},
        {"harness": "0.2.0"},
        {"images": ()},
        {"jobs": (a_job(why="another"),)},
    ):
        assert plans.digest(dataclasses.replace(plan, **changes)) != plan.id, changes


def content(**changes: Any) -> dict[str, Any]:
    return {**plans.dump(a_plan(a_job())), **changes}


def changed_job(**changes: Any) -> dict[str, Any]:
    job = content()["jobs"][0]
    return content(jobs=[{**job, **changes}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"plan\.json:1: not JSON"),
        ("[]", "does not name its format"),
        (json.dumps({}), "does not name its format"),
        (json.dumps(content(format=2)), "another than 1"),
        (json.dumps({k: v for k, v in content().items() if k != "jobs"}), "jobs: .*required"),
        (json.dumps(content(dirty="no")), "dirty: "),
        (json.dumps(content(images=[{"image": "kite"}])), r"images\.0\.arch: "),
        (json.dumps(content(empty="no change")), "empty says why there are no jobs"),
        (json.dumps(content(jobs=[*content()["jobs"]] * 2)), "two jobs have the id"),
        (
            json.dumps(
                content(
                    jobs=[
                        *content()["jobs"],
                        {**content()["jobs"][0], "id": "kite-x86-64-9"},
                    ]
                )
            ),
            "is in two jobs, kite-x86-64-1 and kite-x86-64-9",
        ),
        (json.dumps(changed_job(seconds="long")), r"jobs\.0\.seconds: "),
        (json.dumps(changed_job(seconds=-1.0)), r"jobs\.0: seconds is a finite number"),
        (json.dumps(changed_job(id="../other")), r"jobs\.0: the id of a job"),
        (json.dumps(changed_job(shard="3/2")), r"jobs\.0: shard is N/COUNT"),
        (json.dumps(changed_job(tests=["a", "a"])), r"jobs\.0: tests has a twice"),
        (json.dumps(changed_job(needs={"memory": 0})), r"jobs\.0\.needs: memory is at least 1"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        plans.read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plan\.json: cannot be read.*\n.*harness plan"):
        plans.read(tmp_path / "plan.json")


def test_a_plan_has_no_more_jobs_than_a_matrix_takes() -> None:
    jobs = [a_job(f"kite-{number}", shard="1/1") for number in range(257)]
    with pytest.raises(ValueError, match="256"):
        a_plan(*jobs)
