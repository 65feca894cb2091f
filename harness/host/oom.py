"""Processes that the kernel killed because a cgroup of Harness had no memory left.

QEMU that dies by ``SIGKILL`` does not say who killed it. The kernel counts the processes that it killed
in a group for want of memory: ``oom_kill`` in ``memory.events`` of cgroup v2 (kernel documentation,
*Control Group v2*, "Memory Interface Files") and in ``memory.oom_control`` of v1 (since Linux 4.13;
*Memory Resource Controller*, "OOM Control"). In a pod these are the pod's.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        self._before = counts(self._folders)

    def words(self) -> str:
        """Return how many were killed and in which group; empty if none was, or nothing counts them."""
        for path, count in counts(self._folders).items():
            if (killed := count - self._before.get(path, 0)) > 0:
                processes = "a process" if killed == 1 else f"{killed} processes"
                return f"the kernel killed {processes} for want of memory ({path})"
        return ""


def counts(folders: Iterable[Path]) -> dict[Path, int]:
    """Return how many processes were killed in each group, by the file that says so.

    Args:
        folders: The groups. The innermost, whose limit is mostly the tightest, comes first.
    """
    files = (folder / name for folder in folders for name in _FILES)
    return {path: count for path in files if (count := count_in(path)) is not None}


def count_in(path: Path) -> int | None:
    """Return the number after ``oom_kill`` in a file; ``None`` if it does not say."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    numbers = (words[1] for words in lines if len(words) == 2 and words[0] == "oom_kill")
    return next((int(number) for number in numbers if number.isdecimal()), None)
