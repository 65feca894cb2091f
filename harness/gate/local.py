"""Runs the jobs of a plan on this host, one after another, as a runner would run each of them.

A job is a process, ``harness acceptance --plan``, whose workers are as many as the host can carry
machines. Jobs do not run side by side: they would share the same memory and the same processors, and
admission would make one wait for the other.

Ctrl-C, ``SIGTERM`` and a closed terminal end the job that runs, in order, and no further job starts. A
job that takes longer than its plan allows is ended in the same way, and others follow.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, Self, TextIO

from harness.gate.plan import Job, Plan
from harness.signals import handling_end

_MINUTE: Final = 60.0

Say = Callable[[str], None]


class Jobs:
    """Runs jobs; a context manager that takes the signals of its process meanwhile.

    Args:
        results: The folder that gets a folder for each job, with a run for each attempt.
        arguments: Further arguments for pytest.
        output: Where the output of the jobs goes; standard output by default.
        say: Prints a line for people.

    Attributes:
        interruption: The name of the signal that ended the gate; empty if none has.
    """

    def __init__(
        self,
        results: Path,
        *,
        arguments: Sequence[str] = (),
        output: TextIO | None = None,
        say: Say,
    ) -> None:
        self._results = results
        self._arguments = arguments
        self._output = output
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._signals = handling_end(self._interrupt)
        self.interruption = ""

    def __enter__(self) -> Self:
        self._signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__(None, None, None)

    def run(self, plan: Plan, path: Path) -> None:
        """Run each job of a plan; returns early if a signal ends the gate.

        Args:
            plan: The plan.
            path: Its file.
        """
        for number, job in enumerate(plan.jobs, 1):
            if self.interruption:
                return
            tests = f"{len(job.tests)} test{'s' if len(job.tests) > 1 else ''}"
            again = f", attempt {plan.attempt}" if plan.attempt > 1 else ""
            self._say(
                f"job {number} of {len(plan.jobs)}: {job.id}, {tests}{again}"
                f" (about {job.seconds:.0f} s): {job.why}"
            )
            self._job(job, plan.attempt, path)

    def _job(self, job: Job, attempt: int, path: Path) -> None:
        command = [
            *(sys.executable, "-m", "harness.cli", "acceptance"),
            *("--plan", str(path), "--job", job.id, "--attempt", str(attempt)),
            *("--evidence", str(self._results / job.id)),
            *(("-n", "auto") if len(job.tests) > 1 else ()),
            *self._arguments,
        ]
        # In a group of its own: the terminal's Ctrl-C reaches this process alone, which passes it on.
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, process_group=0
        ) as process:
            self._process = process
            if self.interruption:
                # The signal came after the last look.
                self._pass_on(signal.SIGTERM)
            if not _ended(process.pid, job.timeout_minutes * _MINUTE):
                self._say(f"job {job.id} took more than {job.timeout_minutes} minutes: ending it")
                self._pass_on(signal.SIGTERM)
            status = process.wait()
            self._process = None
        self._say(f"job {job.id} ended with status {status}")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.interruption = signal.Signals(number).name
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        """Send a signal to the job, and to all processes that it has started."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _ended(pid: int, seconds: float) -> bool:
    """Wait until a child process has ended, for so long at most; return whether it has."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
