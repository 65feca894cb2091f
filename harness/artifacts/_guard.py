"""Runs a build script, and kills it with all its processes when Harness ends.

Run as a program: ``python -I -S _guard.py LIFELINE PROGRAM ARGS...``. LIFELINE is a descriptor of a
pipe, and Harness holds the other end. That end closes when Harness closes it or dies, ``kill -9``
included; then the guard ends the script. The guard is a child subreaper (``PR_SET_CHILD_SUBREAPER``,
``prctl(2)``): processes that the script leaves behind, in any session, become its children and are
killed too. It exits with the script's status, or with 128 plus the number of the script's signal.

It imports nothing of Harness and little of Python, so that it starts fast and holds no resources.
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
    # No byte is ever written: the lifeline becomes ready when its other end is closed.
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
    """Kill the process group, then each child of this process, until none is left."""
    # The group first: one call kills it, and it works where the kernel does not list children.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    killed_as_root: set[int] = set()
    while True:
        refused = []
        for pid in children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                refused.append(pid)
        # Only root can kill a script that became root by sudo. If sudo fails too, the guard waits for
        # the script.
        if new := set(refused) - killed_as_root:
            killed_as_root |= new
            with contextlib.suppress(OSError):
                kill = ["sudo", "-n", "kill", "-KILL", *map(str, sorted(new))]
                killed_as_root.add(os.posix_spawnp("sudo", kill, os.environ))
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
