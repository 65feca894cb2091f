"""What the containers of a plan's pods do: run the job of an index, and keep its evidence.

Both take the index and the number of failures before from the command line of the pod; see
:mod:`harness.gate.kubernetes`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from harness.errors import HostError, UsageError
from harness.evidence.results import FILE
from harness.gate.plan import Job, Plan
from harness.signals import END, passing_on

INFRA: Final = 11
"""The exit status of a job that the host made fail, as of ``harness acceptance``."""

SECONDS_TO_END: Final = 60
"""How long a job that ran out of time may take to end its machines and write its results."""

_HARNESS: Final = (sys.executable, "-m", "harness.cli")


def job_of(plan: Plan, index: int, failures: int) -> tuple[Job, int]:
    """Return the job of an index, and the number of the attempt.

    Raises:
        UsageError: The plan has no such index.
    """
    if not 0 <= index < len(plan.jobs):
        raise UsageError(f"--index {index}: the plan has jobs 0 to {len(plan.jobs) - 1}")
    return plan.jobs[index], plan.attempt + failures


def doctor(path: Path, job: Job, attempt: int, evidence: Path) -> list[str]:
    """Return the command that says whether the runner is fit for a job.

    An unfit one leaves results in which each test of the job is infra, with the reason.
    """
    return [*_HARNESS, "doctor", "--gate", *_named(path, job, attempt), "--results", str(evidence)]


def tests(path: Path, job: Job, attempt: int, evidence: Path) -> list[str]:
    """Return the command that runs the tests of a job."""
    return [*_HARNESS, "acceptance", *_named(path, job, attempt), "--evidence", str(evidence)]


def _named(path: Path, job: Job, attempt: int) -> list[str]:
    return ["--plan", str(path), "--job", job.id, "--attempt", str(attempt)]


def run(check: Sequence[str], tests: Sequence[str], seconds: float) -> int:
    """Check the runner, run the tests, and return the exit status of the job.

    A runner that fails its check is infra, whatever the status. So is a job that ends by a signal or not
    in time: each test has a deadline of its own, and this one is the runner's. A signal to end this
    process goes on to the command.

    Args:
        check: The command that checks the runner.
        tests: The command that runs the tests.
        seconds: How long both may take.
    """
    end = time.monotonic() + seconds
    if status := _run(check, end):
        print(f"harness: the runner is not fit: exit status {status}", file=sys.stderr)
        return INFRA
    return _run(tests, end)


def _run(command: Sequence[str], end: float) -> int:
    with passing_on(command) as process:
        try:
            status = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            print("harness: the job's time is up; ending it", file=sys.stderr)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
            process.kill()
            return INFRA
    if status < 0:
        print(f"harness: killed by {signal.Signals(-status).name}", file=sys.stderr)
        return INFRA
    return status


def wait_for_end() -> None:
    """Return when this process is asked to end: the pod's other containers have ended by then.

    Kubernetes ends sidecars after the containers that they serve
    (https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, END)
    signal.sigwait(END)


def keep(evidence: Path, folder: Path, say: Callable[[str], None]) -> int:
    """Copy the evidence of a job to its folder in the claim of results; return the number of files.

    The results come first. So a copy that breaks off, because the claim is full or the pod's time is up,
    lacks evidence and not the verdict. Each file appears whole. Links, sockets and pipes are left out.

    Raises:
        HostError: The results could not be copied.
    """
    count = 0
    for path in sorted(_files(evidence), key=lambda each: (each.name != FILE, each)):
        target = folder / path.relative_to(evidence)
        draft = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft)
            draft.replace(target)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            if path.name == FILE:
                raise HostError(
                    f"{FILE} was not kept in {folder}: {error.strerror}",
                    hint="is the claim full, and may group 1001 write to it?",
                ) from error
            say(f"{path.relative_to(evidence)} was not kept: {error.strerror}")
            continue
        count += 1
    return count


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(parent) / name).is_symlink()]
        for name in names:
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink():
                yield path
