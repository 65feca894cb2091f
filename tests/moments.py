"""Kills a process before its n-th change to files, so that tests can try every moment of an action.

Python calls audit hooks before it makes a change (``sys.addaudithook``; "Audit events table" in the
documentation of Python). A process that is killed at change n leaves the first n - 1 changes. No
clock is involved, so the moments are the same in each run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]

STEP = "tests.moment"
"""An audit event for steps without one of their own; code that raises it adds a moment."""

CHANGES = frozenset(
    {
        STEP,
        "fcntl.flock",
        "os.chmod",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.truncate",
        "os.utime",
        "subprocess.Popen",
    }
)

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def arm(last: int) -> Callable[[], int]:
    """Kill this process before its ``last``-th change; return a function that counts the changes.

    Args:
        last: The number of the change, counted from 1 at this call; 0 never kills.
    """
    changes = 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event not in CHANGES:
            return
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return lambda: changes


def serve(act: Callable[..., object]) -> None:
    """Call ``act`` in a child process for each line of standard input; print its exit status.

    A line is a JSON array: the number of the change at which to kill the child, then the arguments
    of ``act``. A fork costs milliseconds; a new interpreter would cost hundreds.
    """
    for line in sys.stdin:
        last, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                arm(last)
                act(*arguments)
                status = 0
            finally:
                os._exit(status)
        _, wait_status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(wait_status), flush=True)


class Victim:
    """A process that runs a module which calls :func:`serve`; a context manager that ends it.

    Args:
        module: The name of the module.
        arguments: The arguments of the process.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def survives(self, last: int, *arguments: object) -> bool:
        """Run the action once; return whether it ended before its ``last``-th change."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([last, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL), f"the action failed with status {status}"
        return status == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
