"""The counters of the kernel that tell how busy this host is.

Sources: ``proc_stat(5)`` (``procs_running``, steal), ``proc_pid_stat(5)``, ``proc_vmstat(5)``,
``proc_meminfo(5)``; the kernel's documentation *PSI - Pressure Stall Information* (``/proc/pressure``,
and a cgroup's own files) and *Scheduler Statistics* (``/proc/PID/task/TID/schedstat``: nanoseconds on a
CPU, nanoseconds runnable without one). Kills for want of memory: :mod:`harness.host.oom`. A kernel
without one of them gives ``None``, or nothing for that part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.host import oom
from harness.host.capacity import groups

PROC: Final = Path("/proc")
CGROUP: Final = Path("/sys/fs/cgroup")

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Task:
    """What one thread has had.

    Attributes:
        ran: Seconds on a CPU.
        waited: Seconds runnable without a CPU; ``None`` if the kernel does not count them.
        ready: Whether it runs or is runnable now; only read if ``waited`` is ``None``.
    """

    ran: float
    waited: float | None
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment; all but the moment itself since some fixed point.

    Attributes:
        at: The moment, on the clock of :func:`time.monotonic`.
        asleep: Seconds that the host was suspended since it booted: ``CLOCK_BOOTTIME`` runs on then,
            ``CLOCK_MONOTONIC`` does not (``clock_gettime(2)``).
        epoch: The wall clock's time of the boot: it moves only when the clock is set.
        tasks: The threads of all QEMU processes, by thread id.
        runnable: The threads of the whole host that run or are runnable now.
        stolen: CPU seconds that the hypervisor below this host gave to others, per CPU.
        stalls: Seconds of PSI, by folder and name: ``cpu some``, ``memory some``, ``io full``...
        oom_kills: Processes that the kernel killed for lack of memory, by the file that counts them: the
            host's, this cgroup's, and those of the groups above.
        memory: Bytes of RAM that the host can still give (``MemAvailable``).
        disk: Free bytes where Harness writes; the least of several places.
    """

    at: float
    asleep: float = 0.0
    epoch: float = 0.0
    tasks: Mapping[int, Task] = field(default_factory=dict)
    runnable: int = 0
    stolen: float = 0.0
    stalls: Mapping[tuple[str, str], float] = field(default_factory=dict)
    oom_kills: Mapping[Path, int] = field(default_factory=dict)
    memory: int = 1 << 62
    disk: int = 1 << 62


def read(
    pids: Iterable[int], folders: Iterable[Path] = (), *, proc: Path = PROC, cgroup: Path = CGROUP
) -> Reading:
    """Read the counters now; takes about a millisecond.

    Args:
        pids: The QEMU processes.
        folders: Where Harness writes.
        proc: The mount of procfs.
        cgroup: The mount of the cgroups.
    """
    monotonic = time.monotonic()
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    tasks: dict[int, Task] = {}
    for pid in pids:
        tasks.update(_tasks(proc / str(pid) / "task"))
    runnable, stolen = _stat(proc / "stat")
    free = [1 << 62]
    for folder in folders:
        with contextlib.suppress(OSError):
            free.append(shutil.disk_usage(folder).free)
    return Reading(
        at=monotonic,
        asleep=boot - monotonic,
        epoch=time.time() - boot,
        tasks=tasks,
        runnable=runnable,
        stolen=stolen,
        stalls=_stalls([proc / "pressure", *groups(proc, cgroup, "")]),
        oom_kills=_oom_kills(proc / "vmstat", groups(proc, cgroup, "memory")),
        memory=_field(proc / "meminfo", "MemAvailable:", 1 << 52) * 1024,
        disk=min(free),
    )


def _tasks(folder: Path) -> dict[int, Task]:
    tasks = {}
    # A thread or the process may end meanwhile.
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - half the time of iterdir(), once a second
            with contextlib.suppress(OSError, ValueError, IndexError):
                tasks[int(name)] = _task(f"{folder}/{name}")
    return tasks


def _task(folder: str) -> Task:
    with contextlib.suppress(FileNotFoundError):
        ran, waited, _ = _text(f"{folder}/schedstat").split()
        # A kernel without CONFIG_SCHED_INFO has no such file, or three zeros in it.
        if int(ran) or int(waited):
            return Task(int(ran) / 1e9, int(waited) / 1e9)
    # Skip the name, which may contain anything; the state is field 3.
    fields = _text(f"{folder}/stat").rpartition(")")[2].split()
    ran_ticks = int(fields[14 - 3]) + int(fields[15 - 3])
    return Task(ran_ticks / _TICKS, None, fields[0] in "RD")


def _text(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("ascii", "replace")
    finally:
        os.close(fd)


def _stat(path: Path) -> tuple[int, float]:
    """Return the runnable threads, and the stolen seconds per CPU."""
    runnable, stolen = 0, 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="ascii").splitlines():
            words = line.split()
            if words and words[0] == "cpu":
                # user nice system idle iowait irq softirq steal
                stolen = int(words[8]) / _TICKS / (os.cpu_count() or 1)
            elif words and words[0] == "procs_running":
                runnable = int(words[1])
    return runnable, stolen


def _stalls(folders: Iterable[Path]) -> dict[tuple[str, str], float]:
    """Return the seconds of stalls: those of the host, and those of this cgroup and the ones above."""
    stalls: dict[tuple[str, str], float] = {}
    for folder in folders:
        for resource in ("cpu", "memory", "io"):
            name = resource if folder.name == "pressure" else f"{resource}.pressure"
            with contextlib.suppress(OSError, ValueError):
                for line in _text(f"{folder}/{name}").splitlines():
                    kind, *_, total = line.split()
                    seconds = int(total.removeprefix("total=")) / 1e6
                    stalls[str(folder), f"{resource} {kind}"] = seconds
    return stalls


def _oom_kills(host: Path, folders: Iterable[Path]) -> dict[Path, int]:
    """Return how many processes the kernel has killed for want of memory, by file that says so."""
    own = oom.count_in(host)
    return oom.counts(folders) | ({} if own is None else {host: own})


def _field(path: Path, name: str, default: int) -> int:
    """Return the number after a name, the first word of its line."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="ascii").splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    return default
