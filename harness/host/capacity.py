"""The CPUs and the memory of this host that Harness may use, after cgroup limits.

In a pod ``/proc/meminfo`` describes the node and not the pod. The limits of the pod come from cgroup v2
(``memory.max``, ``cpu.max``; kernel documentation, *Control Group v2*) or v1
(``memory.limit_in_bytes``, ``cpu.cfs_quota_us``), of this process' group and all groups above it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_V1_UNLIMITED: Final = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63, rounded to pages."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The CPUs and the memory that this process may use.

    Attributes:
        cpus: CPUs; a fraction under a quota.
        memory: Bytes of RAM that this process may have in all.
        available: Bytes of RAM that are free now.
        limit: The source of ``memory``: ``host`` or the cgroup file.
        cpu_limit: The source of ``cpus``: ``host``, ``affinity`` or the cgroup file.
    """

    cpus: float
    memory: int
    available: int
    limit: str
    cpu_limit: str


def capacity(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Capacity:
    """Return the capacity of this process now."""
    info = _meminfo(proc / "meminfo")
    memory, limit = info["MemTotal"], "host"
    available = info.get("MemAvailable", memory)
    cpus, cpu_limit = float(os.cpu_count() or 1), "host"
    affinity = len(os.sched_getaffinity(0))
    if affinity < cpus:
        cpus, cpu_limit = float(affinity), "affinity"
    for folder in groups(proc, cgroup, "memory"):
        for name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            allowed = _number(folder / name)
            if allowed is None or allowed >= _V1_UNLIMITED:
                continue
            if allowed < memory:
                memory, limit = allowed, str(folder / name)
            used = _number(folder / used_name)
            if used is not None:
                available = min(available, max(0, allowed - used))
    for folder in groups(proc, cgroup, "cpu"):
        quota = _quota(folder)
        if quota is not None and quota < cpus:
            cpus, cpu_limit = quota, str(folder)
    return Capacity(cpus, memory, available, limit, cpu_limit)


def _meminfo(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 2}


def groups(proc: Path, root: Path, controller: str) -> list[Path]:
    """Return the folders of this process' group for a controller, and of the groups above it."""
    folders = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            bases = [root, root / "unified"]
        elif controller in controllers.split(","):
            bases = [root / controllers, root / controller]
        else:
            continue
        for base in bases:
            group = base / path.lstrip("/")
            # In a container the path may be the one on the host; the mount itself is then the group.
            while group.is_relative_to(base):
                if group.is_dir():
                    folders.append(group)
                if group == base:
                    break
                group = group.parent
    return folders


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _quota(folder: Path) -> float | None:
    """Return the CPUs of a group's quota; ``None`` if it has no quota."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    v1_quota, v1_period = (
        _number(folder / "cpu.cfs_quota_us"),
        _number(folder / "cpu.cfs_period_us"),
    )
    return v1_quota / v1_period if v1_quota and v1_period else None
