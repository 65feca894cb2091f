"""Plans for tests of what reads them."""

from __future__ import annotations

import dataclasses

from harness.gate.plan import Job, Plan, digest

COMMIT = "a" * 40


def a_job(name: str, *tests: str, **facts: object) -> Job:
    """Return a job."""
    # Of images of their own: a test of an image is in one job.
    known = {"image": name, "arch": "x86_64", "tier": "gate", "shard": "1/1"}
    return Job(id=name, tests=tests, **(known | facts))  # type: ignore[arg-type]


def a_plan(*jobs: Job, **facts: object) -> Plan:
    """Return a plan of some jobs."""
    known: dict[str, object] = {
        "id": "0123456789abcdef",
        "created": "2026-11-29T01:02:03Z",
        "harness": "0.1.0",
        "commit": COMMIT,
        "dirty": False,
        "since": None,
        "changed": (),
        "tier": "gate",
        "empty": "",
        "images": (),
    }
    return Plan(jobs=jobs, **(known | facts))  # type: ignore[arg-type]


def sealed(plan: Plan) -> Plan:
    """Return a plan with the id that its content has."""
    return dataclasses.replace(plan, id=digest(plan))
