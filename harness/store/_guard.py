"""Runs a build script, and ends it with everything it started when Harness ends.

Run as a program: ``python -I -S _guard.py LIFELINE PROGRAM ARGS...``. LIFELINE is a descriptor of a
pipe that Harness holds the other end of: it closes when Harness lets go or dies, ``kill -9``
included, and that is the signal to end. The guard is a child subreaper (``PR_SET_CHILD_SUBREAPER``,
``prctl(2)``): whatever the script leaves behind becomes its child, in whatever session, and is
killed too. It exits as the script did; 128 and the signal's number for a signal.

It imports nothing of Harness and little of Python: it has to start fast and hold nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
COULD_NOT_START = 127


def main(lifeline: int, command: list[str]) -> int:
    """Run ``command`` until it ends, or until the lifeline closes."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            setpgroup=0,
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return COULD_NOT_START
    process = os.pidfd_open(child)
    waiter = select.poll()
    waiter.register(process, select.POLLIN)
    # Nothing is ever written: the lifeline is ready when its other end is closed.
    waiter.register(lifeline, select.POLLIN)
    waiter.poll()
    result = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    end_all(child)
    if result is None:
        return 128 + signal.SIGKILL
    if result.si_code == os.CLD_EXITED:
        return result.si_status
    return 128 + result.si_status


def end_all(group: int) -> None:
    """Kill the process group, then whatever was orphaned to this process, until none is left."""
    # The group first: at once, and where the kernel lists no children.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    asked: set[int] = set()
    while True:
        refused = []
        for pid in children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                refused.append(pid)
        # A script that became root by sudo can be killed by root only. One that cannot be killed
        # even so is waited for.
        if new := set(refused) - asked:
            asked |= new
            with contextlib.suppress(OSError):
                kill = ["sudo", "-n", "kill", "-KILL", *map(str, sorted(new))]
                asked.add(os.posix_spawnp("sudo", kill, os.environ))
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """Return the children of this process (``/proc/PID/task/TID/children``, ``proc(5)``)."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
