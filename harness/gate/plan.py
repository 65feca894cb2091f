"""The plan of a gate: which jobs run, and why each image is in or out; ``plan.json`` is its record.

::

    {"format": 1, "id": "9f2c41d07a65be13", "created": "2026-11-29T01:02:03Z", "harness": "0.1.0",
     "commit": "158d905...", "dirty": false, "since": "origin/main", "changed": ["images/skiff/build"],
     "tier": "gate", "empty": "", "attempt": 1,
     "images": [{"image": "skiff", "arch": "x86_64", "planned": true,
                 "why": "images/skiff/build changed", "tests": 41,
                 "left_out": {"tier": 12, "capability": 0, "change": 0}}],
     "jobs": [{"id": "skiff-x86-64-1", "image": "skiff", "arch": "x86_64", "tier": "gate",
               "shard": "1/3", "tests": ["suites/boot/test_live.py::test_no_unit_has_failed"],
               "states": ["live"], "why": "images/skiff/build changed",
               "needs": {"memory": 5120, "cpus": 2, "disk": 12288, "kvm": false},
               "seconds": 640.0, "timeout_minutes": 40, "labels": ["harness"]}]}

The ``id`` is a digest of all the rest but ``created`` and ``attempt``: the same inputs make the same
plan, and a second attempt at some of its jobs keeps the id, so that the judge knows whose results it
reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.errors import UnknownNameError, UsageError

FORMAT: Final = 1

FILE: Final = "plan.json"
"""The usual name of the file."""

MOST_JOBS: Final = 256
"""Jobs of a plan, at most: GitHub generates no more from a matrix for a run
(https://docs.github.com/en/actions/reference/limits)."""

MOST_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a ``plan.json``, at most; a larger file is none."""

_ID: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,98}[a-z0-9])?")
"""The id of a job: part of the names of artifacts, folders and pods. The planner's have no ``_``."""

_SHARD: Final = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a runner has to have for a job.

    Attributes:
        memory: MiB of memory; RAM files on a memory-backed volume are in it.
        cpus: Processors.
        disk: MiB of disk: artifacts, states, disks of machines, evidence.
        kvm: Whether the job needs ``/dev/kvm``; without it, its guests are emulated.
    """

    memory: int = 1024
    cpus: int = 1
    disk: int = 4096
    kvm: bool = False

    def __post_init__(self) -> None:
        for name in ("memory", "cpus", "disk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Job:
    """Tests of one image on one architecture that a runner runs in one go.

    Attributes:
        id: Its name: letters, digits and hyphens, such as ``skiff-x86-64-1``.
        image: The image under test, as ``--image`` takes it.
        arch: The architecture.
        tier: The tier that the run is started with; its tests are all of it.
        shard: Which part of the image's tests it has: ``1/3``.
        tests: pytest's node ids, as they are in a run of this architecture alone. The test of an id
            lies below the root folder of its suites, as in ``results.json``.
        states: The states that it makes or restores, such as ``installed``.
        why: Why it is in the plan.
        needs: What its runner has to have.
        seconds: How long it takes, by history or by the marks of its tests.
        timeout_minutes: When a runner shall give it up.
        labels: The labels of the runners that may take it.
        also: Further architectures of the image that its tests start: a runner that cannot build needs
            their images, too.
    """

    id: str
    image: str
    arch: str
    tier: str
    shard: str
    tests: tuple[str, ...]
    states: tuple[str, ...] = ()
    why: str = ""
    needs: Needs = Needs()
    seconds: float = 0.0
    timeout_minutes: int = 60
    labels: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"the id of a job has letters, digits and hyphens, not {self.id!r}")
        parts = _SHARD.fullmatch(self.shard)
        if parts is None or int(parts[1]) > int(parts[2]):
            raise ValueError(f"shard is N/COUNT such as 1/3, not {self.shard!r}")
        for name in ("image", "arch", "tier"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        if repeated := [test for test, count in Counter(self.tests).items() if count > 1]:
            raise ValueError(f"tests has {repeated[0]} twice")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"seconds is a finite number of at least 0, not {self.seconds}")
        if self.timeout_minutes < 1:
            raise ValueError(f"timeout_minutes is at least 1, not {self.timeout_minutes}")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image on an architecture: whether the plan has it, and why.

    Attributes:
        image: The image, as ``--image`` takes it.
        arch: The architecture.
        planned: Whether jobs of the plan test it.
        why: Why it is in, or out.
        tests: How many of its tests are planned.
        left_out: How many are not, by cause: ``tier``, of a larger tier; ``capability``, which the
            image does not declare; ``change``, which no changed file touches.
    """

    image: str
    arch: str
    planned: bool
    why: str
    tests: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The jobs of a gate.

    Attributes:
        id: The digest of the plan, 16 hexadecimal digits.
        created: When it was made, in ISO 8601.
        harness: The version of Harness that made it.
        commit: The commit of the project; empty where git does not say.
        dirty: Whether the project had changes that are in no commit.
        since: What ``--changed-since`` named; ``None`` for a plan that no change selects.
        changed: The paths that changed since then, relative to the project's folder.
        tier: The largest tier of its tests.
        empty: Why it has no jobs; empty if it has some.
        images: A row for each image and architecture that was considered.
        jobs: The jobs.
        attempt: 1, or 2 for a plan of the jobs that the host made fail.
    """

    id: str
    created: str
    harness: str
    commit: str
    dirty: bool
    since: str | None
    changed: tuple[str, ...]
    tier: str
    empty: str
    images: tuple[ImageRow, ...]
    jobs: tuple[Job, ...]
    attempt: int = 1

    def __post_init__(self) -> None:
        if len(self.jobs) > MOST_JOBS:
            raise ValueError(f"jobs has {len(self.jobs)}, and may have {MOST_JOBS}")
        names = Counter(job.id for job in self.jobs)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two jobs have the id {repeated[0]!r}")
        owners: dict[tuple[str, str, str], str] = {}
        for job in self.jobs:
            for test in job.tests:
                other = owners.setdefault((job.image, job.arch, test), job.id)
                if other != job.id:
                    raise ValueError(f"{test} is in two jobs, {other} and {job.id}")
        if self.attempt < 1:
            raise ValueError(f"attempt is at least 1, not {self.attempt}")
        if self.jobs and self.empty:
            raise ValueError("empty says why there are no jobs, and there are some")

    def job(self, name: str) -> Job:
        """Return a job by its id.

        Raises:
            UnknownNameError: The plan has no such job.
        """
        for job in self.jobs:
            if job.id == name:
                return job
        raise UnknownNameError("job", name, [job.id for job in self.jobs])


def digest(plan: Plan) -> str:
    """Return the id that a plan has by its content."""
    content = dump(plan)
    for name in ("id", "created", "attempt"):
        del content[name]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dump(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain JSON: the content of ``plan.json``."""
    return {"format": FORMAT, **jsonfile.dump(plan)}


def write(plan: Plan, path: Path) -> None:
    """Write a plan's file, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        jsonfile.write(path, dump(plan))
    except OSError as error:
        raise UsageError(f"the plan cannot be written: {error}") from error


def read(path: Path) -> Plan:
    """Return the plan in a file.

    Raises:
        UsageError: There is none; the message has the file and the field at fault.
    """
    hint = f"make one: harness plan -o {path}"
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UsageError(f"{path}: a file of {size} bytes is no plan", hint=hint)
        return jsonfile.load(path, Plan, format=FORMAT)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    except jsonfile.OtherFormatError as error:
        raise UsageError(
            f"{path}: format: another than {FORMAT}, the one of this version of Harness", hint=hint
        ) from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        what = str(error).removeprefix(f"{path} ").replace("Value error, ", "")
        raise UsageError(f"{path}: not a plan: {what}", hint=hint) from error


def commit_of(folder: Path) -> str:
    """Return the commit that the checkout of a folder is at; empty where git does not say."""
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""
