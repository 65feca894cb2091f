"""Reads what the jobs of a plan left behind: a folder of ``results.json`` files, in any order and depth.

The files come from machines that run the code of a change: they may be cut off, huge, forged or of
something else. Each is one of these:

- results of a job of the plan;
- damaged: it cannot be read, or is not in the format of results. Its job is the one that a folder of its
  path names, if one does;
- of no use: of another plan, of another commit, of a job that the plan does not have, of no plan at
  all. A note names it; it counts for nothing.

The same content in two places counts once. Links are not followed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Required

from typing_extensions import TypedDict

from harness.evidence.report.text import line
from harness.evidence.results import FILE, FORMAT
from harness.gate.plan import Job, Plan

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MOST_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a ``results.json``, at most: 500 tests take less than one of these 64 MiB."""

MOST_ATTEMPTS: Final = 100


class _Test(TypedDict, total=False):
    """What the judge reads of a test."""

    id: Required[str]
    outcome: Required[Literal["passed", "failed", "skipped", "xfailed", "interrupted"]]
    verdict: Required[
        Literal["", "passed", "product", "test", "infra", "timeout", "known", "flaky"]
    ]
    reason: str
    evidence: str
    signature: str
    known: dict[str, Any] | None


class _Planned(TypedDict, total=False):
    """The job of a plan that results are of."""

    id: Required[str]
    job: Required[str]
    attempt: Required[int]
    commit: str


class _Error(TypedDict):
    """A file whose tests could not be collected."""

    id: str
    reason: str


class _Results(TypedDict, total=False):
    """What the judge reads of ``results.json``."""

    format: Required[int]
    status: Required[int | None]
    seconds: float
    plan: _Planned
    errors: list[_Error]
    tests: Required[list[_Test]]


@dataclass(frozen=True, slots=True)
class TestLine:
    """What results say of a test.

    Attributes:
        id: Its node id.
        label: Its verdict, or its outcome if it has none: ``skipped``, ``interrupted``.
        reason: The first line of the failure, the reason of the skip.
        evidence: Its folder, relative to the folder of results; empty if nothing was kept.
        signature: What its failure has in common with others of its cause.
        tracker: Where the known failure is tracked that it matches.
    """

    __test__ = False

    id: str
    label: str
    reason: str = ""
    evidence: str = ""
    signature: str = ""
    tracker: str = ""


@dataclass(frozen=True, slots=True)
class JobResults:
    """One results file: an attempt at a job.

    Attributes:
        job: The job's id.
        attempt: The number of the attempt, from 1.
        status: The exit status; ``None`` if the job ended before its end was written.
        tests: Its tests.
        errors: The files whose tests could not be collected, with the reason.
        seconds: How long it took.
        path: The file, relative to the folder of results.
        digest: The digest of its content.
    """

    job: str
    attempt: int
    status: int | None
    tests: tuple[TestLine, ...]
    errors: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    path: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A results file that cannot be read.

    Attributes:
        path: The file, relative to the folder of results.
        why: What is wrong with it.
        job: The job that its path names; empty if it names none.
    """

    path: str
    why: str
    job: str = ""


@dataclass(frozen=True, slots=True)
class Collected:
    """All that a folder of results holds.

    Attributes:
        results: The results of the plan's jobs, each content once; in an order of their own.
        damaged: The files that cannot be read.
        notes: What was left out, and why; a line each.
    """

    results: tuple[JobResults, ...] = ()
    damaged: tuple[Damaged, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Sorting:
    """What has been read so far."""

    plan: Plan
    jobs: dict[str, Job]
    results: dict[str, JobResults] = field(default_factory=dict)
    damaged: list[Damaged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(folder: Path, plan: Plan) -> Collected:
    """Return what the jobs of a plan left in a folder.

    A folder that does not exist holds nothing: where all runners are lost, nobody makes it.
    """
    sorting = _Sorting(plan, {job.id: job for job in plan.jobs})
    if plan.jobs and not folder.is_dir():
        sorting.notes.append(f"{folder}: there is no such folder, so no job has left results")
    for path in _files(folder):
        _take(sorting, path, path.relative_to(folder).as_posix())
    return Collected(
        tuple(sorted(sorting.results.values(), key=lambda each: (each.attempt, each.digest))),
        tuple(sorted(sorting.damaged, key=lambda each: each.path)),
        tuple(sorted(sorting.notes)),
    )


def _files(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders.sort()
        if FILE in names and not (path := Path(base, FILE)).is_symlink():
            yield path


def _take(sorting: _Sorting, path: Path, name: str) -> None:
    try:
        content, digest = _read(path)
    except (OSError, ValueError, RecursionError) as error:
        why = line(error) or type(error).__name__
        sorting.damaged.append(Damaged(line(name), why, _named(sorting.jobs, name)))
        return
    shown, of, plan = line(name), content.get("plan"), sorting.plan
    if of is None:
        sorting.notes.append(f"{shown}: left out, it is of no plan")
    elif of["id"] != plan.id:
        sorting.notes.append(
            f"{shown}: left out, it is of the plan {line(of['id'])}, not {plan.id}"
        )
    elif of["job"] not in sorting.jobs:
        sorting.notes.append(f"{shown}: left out, the plan has no job {line(of['job'])!r}")
    elif plan.commit and (commit := of.get("commit", "")) and commit != plan.commit:
        sorting.notes.append(
            f"{shown}: left out, {of['job']} ran at commit {line(commit)[:12]}, and the plan is of"
            f" {plan.commit[:12]}"
        )
    else:
        results = _results(content, of, name, digest)
        known = sorting.results.get(digest)
        # The one whose path comes first, in whichever order the files were found.
        if known is None or results.path < known.path:
            sorting.results[digest] = results


def _read(path: Path) -> tuple[_Results, str]:
    """Return what a file holds, and the digest of that.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not hold results; says why.
        RecursionError: It is nested too deeply.
    """
    with path.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES // 1024**2} MiB")
    if not data.strip():
        raise ValueError("it is empty")
    try:
        raw = json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is cut off or damaged: {error}") from error
    content = _checked(raw)
    if content["format"] != FORMAT:
        raise ValueError(f"it has format {content['format']}, not {FORMAT}")
    attempt = content["plan"]["attempt"] if "plan" in content else 1
    if not 1 <= attempt <= MOST_ATTEMPTS:
        raise ValueError(f"it is of attempt {attempt}")
    if not 0 <= content.get("seconds", 0) < 1e9:
        raise ValueError("its seconds are no time")
    return content, hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _checked(raw: object) -> _Results:
    """Return plain JSON as results; keys that the judge does not read are left out.

    Raises:
        ValueError: It has another shape; says where.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_python(raw, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


@functools.cache
def _adapter() -> TypeAdapter[_Results]:
    from pydantic import TypeAdapter

    return TypeAdapter(_Results)


def _named(jobs: dict[str, Job], name: str) -> str:
    """Return the job that a path names; of several, the longest name: skiff-1 is in skiff-1-2."""
    matches = [job for job in jobs if re.search(rf"(?<!\w){re.escape(job)}(?!\w)", name)]
    return max(matches, key=len, default="")


def _results(content: _Results, of: _Planned, name: str, digest: str) -> JobResults:
    folder = Path(name).parent
    return JobResults(
        of["job"],
        of["attempt"],
        content["status"],
        tuple(_test(test, folder) for test in content["tests"]),
        tuple((line(each["id"]), line(each["reason"])) for each in content.get("errors", [])),
        float(content.get("seconds", 0)),
        name,
        digest,
    )


def _test(test: _Test, folder: Path) -> TestLine:
    evidence = test.get("evidence", "")
    return TestLine(
        test["id"],
        test["verdict"] or test["outcome"],
        line(test.get("reason", "")),
        (folder / evidence).as_posix() if evidence else "",
        line(test.get("signature", "")),
        line((test.get("known") or {}).get("tracker", "")),
    )
