"""How much a host carries, how much a machine takes, and who shares a host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.host import Capacity
from harness.spec import GIB, MIB

CPU_FACTOR: Final = 2.0
"""Virtual CPUs granted for each CPU of the host.

A guest that boots keeps little more than one of two virtual CPUs busy: under TCG skiff boots in 68 s
with two and in 90 s with one. One that has booted keeps none busy.
"""

RESERVE: Final = 1 / 16
"""The part of the memory left to the host, to pytest and to services."""

LEAST_RESERVE: Final = 512 * MIB
"""What is left to them at least, in bytes."""

OVERHEAD: Final = {"tcg": 384 * MIB, "kvm": 128 * MIB}
"""Bytes that QEMU takes besides the guest's RAM.

Under TCG that is its code buffer and its heaps: 170 MiB were seen for micro and 230 to 280 MiB for
skiff, while they booted with two virtual CPUs. KVM has no code buffer.
"""

FORK_OVERHEAD: Final = 192 * MIB
"""Bytes that an idle fork takes: QEMU's own, and what little of the shared RAM it has written to.

52 to 99 MiB were seen for forks of skiff, after a command on the console and one over SSH.
"""

WORKING_SET: Final = 1 / 4
"""The part of its RAM that a fork is taken to write to, where nobody says."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be granted in all.

    Attributes:
        cpus: Virtual CPUs.
        memory: Bytes.
    """

    cpus: float
    memory: int

    @classmethod
    def of(cls, room: Capacity) -> Limits:
        """Return what a host with this capacity carries."""
        reserve = max(LEAST_RESERVE, int(room.memory * RESERVE))
        return cls(room.cpus * CPU_FACTOR, max(0, room.memory - reserve))


def footprint(memory: int, accel: str) -> int:
    """Return the bytes to ask for, for a machine with ``memory`` bytes of RAM that it may all touch."""
    return memory + OVERHEAD[accel]


def fork_footprint(memory: int, working_set: int | None = None) -> int:
    """Return the bytes to ask for, for a fork: it shares its RAM until it writes to it.

    Args:
        memory: Bytes of its RAM.
        working_set: Bytes of it that the fork will write to; a quarter of it by default, 0 for one
            that idles.
    """
    return FORK_OVERHEAD + int(memory * WORKING_SET if working_set is None else working_set)


def workers(room: Capacity, *, cpus: float = 2, memory: int | None = None) -> int:
    """Return how many machines of one size a host carries at once, at least 1.

    Args:
        room: The host's capacity.
        cpus: Virtual CPUs of a machine.
        memory: Bytes a machine takes; the :func:`footprint` of 2 GiB under TCG by default.
    """
    limits = Limits.of(room)
    each = footprint(2 * GIB, "tcg") if memory is None else memory
    return max(1, int(min(limits.cpus / cpus, limits.memory / each)))


def pool(cache: Path, room: Capacity) -> Path:
    """Return the folder of those who share this host's memory, below the cache.

    Hosts may share a cache, and so may containers of one host, each with a limit of its own: the
    folder is one for each boot of a host and each group that sets the limit. What it holds is of no
    use after a reboot. Its name has a version, for other versions of Harness.
    """
    key = _BOOT_ID.read_text(encoding="ascii").strip()
    if room.limit != "host":
        group = Path(room.limit).parent.stat()
        key += f" {group.st_dev} {group.st_ino}"
    return cache / "admission" / f"v1-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
