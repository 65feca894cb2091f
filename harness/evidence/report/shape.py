"""The shape of records: what a reader of one may rely on, and the check of one that was read.

Results of other versions, and pages from other hosts, may hold anything. Keys that are not listed here
may be there as well.
"""

from __future__ import annotations

from typing import Any, Required

from typing_extensions import TypedDict


class ResultsTest(TypedDict, total=False):
    """A test in ``results.json``."""

    id: Required[str]
    arch: str
    outcome: str
    verdict: str
    reason: str
    seconds: dict[str, float]
    evidence: str
    worker: str
    tries: list[dict[str, Any]]
    signature: str
    known: dict[str, Any] | None


class Facts(TypedDict, total=False):
    """What ``results.json`` says of the run."""

    began: str
    seconds: float
    command: list[str]
    image: dict[str, Any]
    arches: dict[str, dict[str, Any]]
    versions: dict[str, Any]
    host: dict[str, Any]


class Results(Facts, total=False):
    """``results.json``."""

    tests: Required[list[ResultsTest]]


class Moment(TypedDict):
    """A step that failed."""

    machine: str
    step: str
    start: float
    end: float
    error: str


class Brief(TypedDict):
    """A run that is only mentioned."""

    name: str
    began: str


class Change(TypedDict):
    """What changed since a test passed."""

    good: Brief
    bad: Brief
    facts: list[tuple[str, str, str]]


class Log(TypedDict):
    """A log: see :mod:`~harness.evidence.report.logs`."""

    machine: str
    source: str
    name: str
    start: int
    chunks: list[int]
    text: str
    omitted: int


class Detail(TypedDict):
    """The evidence of a test."""

    steps: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    machines: list[dict[str, Any]]
    logs: list[Log]
    screens: list[dict[str, Any]]


class Test(ResultsTest):
    """A test of a record."""

    clock: float | None
    step: str
    moment: float
    first: list[Moment]
    repeat: list[str]
    change: Change | None
    detail: Detail | None


class Run(Facts, total=False):
    """A run of a record."""

    name: Required[str]
    tests: Required[list[Test]]


class Record(TypedDict):
    """A record."""

    format: int
    runs: list[Run]


def check(content: object, shape: type) -> None:
    """Check that plain JSON has a shape.

    Raises:
        ValueError: It has not; says where.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(shape).validate_python(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
