"""Kills a process at each moment of what it does: before each change that it makes to files.

Python tells audit hooks of a change before it is made (``sys.addaudithook``, "Audit events table" of
Python's documentation): a process that is killed at the n-th leaves what it had done by then. No clock
has a part in it, so the moments are the same in each run.
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
"""The audit event of a step that is none for Python: what tells of one counts it as a change."""

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
    """Kill this process before its ``last``-th change from now on; return what tells how many were made.

    Args:
        last: The number of the change; 0 kills nobody.
    """
    made = 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal made
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event not in CHANGES:
            return
        made += 1
        if made == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return lambda: made


def serve(act: Callable[..., object]) -> None:
    """Do something in a child for each line of standard input: the moment, and the words for ``act``.

    A child costs some milliseconds, an interpreter of its own some hundreds.
    """
    for line in sys.stdin:
        last, *words = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                arm(last)
                act(*words)
                status = 0
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


class Victim:
    """A process that does what a module's :func:`serve` says, and is killed in it.

    Args:
        module: The module.
        arguments: What it is started with.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def survives(self, last: int, *words: object) -> bool:
        """Do it once; whether it came to its end before the ``last``-th change."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([last, *map(str, words)]) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL), f"it failed by itself: {status}"
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
