"""Processes that the kernel killed because a cgroup of Harness had no memory left.

QEMU that dies by ``SIGKILL`` does not say who killed it. The kernel counts the processes that it killed
in a group for want of memory: ``oom_kill`` in ``memory.events`` of cgroup v2 (kernel documentation,
*Control Group v2*, "Memory Interface Files") and in ``memory.oom_control`` of v1 (since Linux 4.13;
*Memory Resource Controller*, "OOM Control"). In a pod these are the pod's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from harness.host.capacity import groups

_FILES: Final = ("memory.events", "memory.oom_control")


class OomKills:
    """Counts the processes that were killed since it was made.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where cgroups are mounted.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._folders = groups(proc, cgroup, "memory")
        self._before = self._read()

    def words(self) -> str:
        """Return how many were killed and in which group; empty if none was, or nothing counts them."""
        for path, count in self._read().items():
            if (killed := count - self._before.get(path, 0)) > 0:
                processes = "a process" if killed == 1 else f"{killed} processes"
                return f"the kernel killed {processes} for want of memory ({path})"
        return ""

    def _read(self) -> dict[Path, int]:
        """Return the counts; the innermost group, whose limit is mostly the tightest, comes first."""
        counts = {}
        for folder in self._folders:
            for name in _FILES:
                path = folder / name
                if (count := _count(path)) is not None:
                    counts[path] = count
        return counts


def _count(path: Path) -> int | None:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    found = (words[1] for words in lines if len(words) == 2 and words[0] == "oom_kill")
    return next((int(number) for number in found if number.isdecimal()), None)
