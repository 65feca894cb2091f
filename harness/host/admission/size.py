"""The memory of a host and of a machine, and the processes that share a host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.host import measured
from harness.host.capacity import Capacity
from harness.spec import GIB, MIB

CPU_FACTOR: Final = 2.0
"""CPUs granted for each CPU of the host.

A guest that boots keeps one busy, one that has booted none, and a member of a cluster a fifth.
"""

RESERVE: Final = 1 / 16
"""The share of the memory that stays with the host, pytest and services."""

LEAST_RESERVE: Final = 512 * MIB
"""The minimum of that share, in bytes."""

OVERHEAD: Final = {"tcg": 384 * MIB, "kvm": 128 * MIB}
"""Bytes that QEMU takes in addition to the guest's RAM.

Under TCG these are its code buffer, of at most 256 MiB (``CODE`` in :mod:`harness.qemu.argv`), and its
heaps: 170 MiB for micro and 230 to 280 MiB for skiff, measured during a boot with two virtual CPUs. KVM
has no code buffer.
"""

FORK_OVERHEAD: Final = 192 * MIB
"""Bytes that an idle fork takes: QEMU's own, and the few pages of shared RAM that it has written to.

Forks of skiff took 52 to 99 MiB, after one command on the console and one over SSH.
"""

WORKING_SET: Final = 1 / 4
"""The share of its RAM that a fork is assumed to write to, unless the caller states it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The sum that admission may grant.

    Attributes:
        cpus: CPUs that machines can keep busy.
        memory: Bytes.
    """

    cpus: float
    memory: int

    @classmethod
    def of(cls, room: Capacity) -> Limits:
        """Return the limits of a host with this capacity."""
        reserve = max(LEAST_RESERVE, int(room.memory * RESERVE))
        return cls(room.cpus * CPU_FACTOR, max(0, room.memory - reserve))


def footprint(memory: int, accel: str) -> int:
    """Return the bytes to request for a machine that may use all its ``memory`` bytes of RAM."""
    return memory + OVERHEAD[accel]


def fork_footprint(memory: int, working_set: int | None = None) -> int:
    """Return the bytes to request for a fork, which shares its RAM until it writes to it.

    Args:
        memory: Bytes of RAM.
        working_set: Bytes of RAM that the fork will write to; a quarter by default, 0 for an idle
            fork.
    """
    return FORK_OVERHEAD + int(memory * WORKING_SET if working_set is None else working_set)


def workers(room: Capacity, *, cpus: float = 2, memory: int | None = None) -> int:
    """Return the number of machines of one size that a host carries at once, at least 1.

    Args:
        room: The host's capacity.
        cpus: CPUs granted for a machine. By default two, so that each that boots has a whole CPU of the
            host, and a test that has a second machine need not wait.
        memory: Bytes that a machine takes; the :func:`footprint` of 2 GiB under TCG by default.
    """
    limits = Limits.of(room)
    size = footprint(2 * GIB, "tcg") if memory is None else memory
    return max(1, int(min(limits.cpus / cpus, limits.memory / size)))


def pool(cache: Path, room: Capacity) -> Path:
    """Return the folder, below the cache, that the processes sharing this host's memory use.

    Hosts may share a cache, and so may containers of one host, each with its own limit. Each boot of a
    host and each cgroup that sets a limit therefore has its own folder, which is useless after a
    reboot. The version in its name keeps incompatible versions of Harness apart.
    """
    key = measured.boot_id()
    if room.limit != "host":
        group = Path(room.limit).parent.stat()
        key += f" {group.st_dev} {group.st_ino}"
    return cache / "admission" / f"v1-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
