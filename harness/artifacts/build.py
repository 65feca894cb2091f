"""Runs an image's build script: in its own process group, with a log, and leaves no process behind."""

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

from harness.artifacts import _guard
from harness.cache.space import full
from harness.deadline import Deadline
from harness.errors import BuildError, WaitTimeoutError
from harness.spec import MIB

TAIL: Final = 40
"""Lines at the end of the log that the error of a failed build contains."""

_LINE: Final = 2000
_ALMOST_NONE: Final = 64 * 1024
_LITTLE: Final = 1024 * MIB
"""Bytes. A script that failed for lack of space may have removed its files since."""
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

    When this call ends, even by an error, the script and all processes that it started are dead. When
    this process is killed, they die too, and ``hold`` keeps the next build waiting until then.

    Args:
        command: The program and its arguments.
        cwd: Its working folder.
        log: The file for its output.
        name: The name of the build in messages.
        deadline: The end of the build.
        hold: The descriptors of locks that stay held until the build has ended.

    Raises:
        BuildError: The script ended with a status other than 0; contains the end of the log.
        DiskFullError: The script failed because no space was left.
        WaitTimeoutError: The deadline passed.
        OSError: The log cannot be written.
    """
    lifeline, ours = os.pipe()
    try:
        with log.open("wb") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            guard = subprocess.Popen(
                # -I: imports depend neither on the environment nor on the working folder.
                [sys.executable, "-I", "-S", _guard.__file__, str(lifeline), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the script
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
            f"the build of {name}", deadline, last_output=tail(log), evidence=str(log)
        )
    if status:
        _fail(name, status, log)


def _wait(guard: subprocess.Popen[bytes], deadline: Deadline) -> bool:
    """Wait until the guard ends; return whether it ended before the deadline."""
    process = os.pidfd_open(guard.pid)
    try:
        waiter = select.poll()
        waiter.register(process, select.POLLIN)
        return deadline.wait(lambda _: bool(waiter.poll(deadline.poll_timeout())))
    finally:
        os.close(process)


def _fail(name: str, status: int, log: Path) -> None:
    end = tail(log)
    free = shutil.disk_usage(log.parent).free
    # The message alone may be about a file system inside the image. On a disk that is full to the last
    # byte, the log has no room for the message.
    if free < _ALMOST_NONE or (free < _LITTLE and _FULL.search(end)):
        raise full(log.parent, f"the build of {name} needs more", evidence=f"{log}\n{end}")
    signal = -status if status < 0 else status - 128
    how = f"was killed by signal {signal}" if 0 < signal < 65 else f"ended with status {status}"
    raise BuildError(
        f"the build of {name} failed: its script {how}",
        evidence=f"{log}\n{end}",
        hint="the first line of the log is the command: run it by hand",
    )


def tail(log: Path, lines: int = TAIL) -> str:
    """Return the last lines of a log, each cut to 2000 bytes, with invalid UTF-8 replaced."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - lines * _LINE))
        last = deque(file.read().splitlines(), maxlen=lines)
    return "\n".join(line[-_LINE:].decode(errors="replace") for line in last)
