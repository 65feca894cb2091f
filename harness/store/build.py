"""Runs an image's build script: its own process group, its log in a file, nothing left behind."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import BuildError, WaitTimeoutError
from harness.spec import MIB
from harness.store import _guard
from harness.store.space import full

TAIL: Final = 40
"""Lines of a failed build's log that its error carries."""

_LINE: Final = 2000
_NEXT_TO_NOTHING: Final = 64 * 1024
_LITTLE: Final = 1024 * MIB
"""Bytes: a script that failed for want of space may have removed what it had written."""
_FULL: Final = re.compile(r"No space left on device|Disk quota exceeded|ENOSPC")


def run_script(
    command: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    name: str,
    deadline: Deadline,
    hold: Sequence[int] = (),
) -> None:
    """Run a build script to its end.

    Whatever ends this call, the script and all that it started are dead when it returns. When this
    process is killed they die as well, and ``hold`` keeps the next build waiting until then.

    Args:
        command: The program and its arguments.
        cwd: Its working folder.
        log: The file that its output goes to.
        name: What is built, for messages.
        deadline: When to give up.
        hold: Descriptors of locks that the build keeps held.

    Raises:
        BuildError: if it ends with another status than 0; carries the end of the log.
        DiskFullError: if it failed because no space was left.
        WaitTimeoutError: if the deadline passed.
        OSError: if the log cannot be written.
    """
    lifeline, ours = os.pipe()
    try:
        with log.open("wb") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            guard = subprocess.Popen(
                # -I: neither the environment nor the working folder decides what is imported.
                [sys.executable, "-I", "-S", _guard.__file__, str(lifeline), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,  # a Ctrl-C of the terminal reaches us, and we end it
                pass_fds=(lifeline, *hold),
            )
        os.close(lifeline)
        lifeline = -1
        try:
            in_time = _wait(guard, deadline)
        finally:
            os.close(ours)
            ours = -1
            status = guard.wait()
    finally:
        for fd in (lifeline, ours):
            if fd >= 0:
                os.close(fd)
    if not in_time:
        raise WaitTimeoutError(
            f"the build of {name}", deadline.seconds, last_output=tail(log), evidence=str(log)
        )
    if status:
        _fail(name, status, log)


def _wait(guard: subprocess.Popen[bytes], deadline: Deadline) -> bool:
    """Wait for the guard's end; whether it came before the deadline."""
    process = os.pidfd_open(guard.pid)
    try:
        waiter = select.poll()
        waiter.register(process, select.POLLIN)
        return bool(waiter.poll(deadline.poll_timeout()))
    finally:
        os.close(process)


def _fail(name: str, status: int, log: Path) -> None:
    last = tail(log)
    free = shutil.disk_usage(log.parent).free
    # The words alone may be of a file system inside the image. On a disk that is full to the last
    # byte, the log has no room for them.
    if free < _NEXT_TO_NOTHING or (free < _LITTLE and _FULL.search(last)):
        raise full(log.parent, f"the build of {name} needs more", evidence=f"{log}\n{last}")
    signal = -status if status < 0 else status - 128
    how = f"was killed by signal {signal}" if 0 < signal < 65 else f"ended with status {status}"
    raise BuildError(
        f"the build of {name} failed: its script {how}",
        evidence=f"{log}\n{last}",
        hint="the log's first line is the command: run it by hand",
    )


def tail(log: Path, lines: int = TAIL) -> str:
    """Return the last lines of a log, each at most 2000 characters, as text whatever it holds."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - lines * _LINE))
        end = deque(file.read().splitlines(), maxlen=lines)
    return "\n".join(line[-_LINE:].decode(errors="replace") for line in end)
