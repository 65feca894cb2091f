"""How slow this host is against a good one with KVM: what deadlines are stretched by.

The scale is a product of three parts. What the accelerator costs: emulation is slower than KVM by a
known factor for each arch. What this processor is worth: a short computation on one thread, measured
once per boot of the host, against :data:`REFERENCE`. How many want the CPUs: the virtual CPUs of all
machines, and whatever else the host does, for each CPU there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness import measured
from harness.deadline import TCG_SCALE
from harness.errors import UnknownNameError
from harness.host import Capacity, capacity

REFERENCE: Final = 0.0082
"""CPU seconds that the computation takes where :data:`ACCELERATORS` was measured, with Python 3.11.

3.12 and 3.13 take an eighth longer there.
"""

ACCELERATORS: Final = {
    "kvm": {"x86_64": 1.0, "aarch64": 1.0},
    # To the login of skiff in 84 s on arm64 and 70 s on x86-64.
    "tcg": {"x86_64": TCG_SCALE, "aarch64": TCG_SCALE * 84 / 70},
}
"""How many times as long a boot takes as under KVM, by accelerator and arch."""

_SLOWEST: Final = 16.0  # times the reference: more is an accident of measuring
_FULLEST: Final = 4.0  # times the CPUs there are: admission lets no more happen, others might
_ROUNDS: Final = 7

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_CPUINFO: Final = Path("/proc/cpuinfo")


def measure(
    accel: str,
    arch: str,
    cache_dir: Path,
    *,
    busy: float = 0.0,
    room: Capacity | None = None,
    load: Callable[[], tuple[float, float, float]] = os.getloadavg,
) -> float:
    """Return what to stretch deadlines by, 1.0 at least: see :func:`harness.deadline.set_scale`.

    It takes a tenth of a second for the first time after a boot of the host, and no time then.

    Args:
        accel: ``kvm`` or ``tcg``.
        arch: The guest's.
        cache_dir: Where the processor's part is remembered; made if absent. If it cannot be written
            to, nothing is remembered.
        busy: Virtual CPUs of all machines on the host, the one to be started included: see
            :attr:`harness.admission.Status.cpus`.
        room: What this process may use; looked up by default.
        load: Gives the host's load averages, as ``getloadavg(3)`` does.

    Raises:
        UnknownNameError: if there is no such accelerator or arch.
    """
    if accel not in ACCELERATORS:
        raise UnknownNameError("accelerator", accel, ACCELERATORS)
    if arch not in ACCELERATORS[accel]:
        raise UnknownNameError("arch", arch, ACCELERATORS[accel])
    crowd = crowding(room or capacity(), busy, load)
    return max(1.0, ACCELERATORS[accel][arch] * processor(cache_dir) * crowd)


def crowding(
    room: Capacity,
    busy: float,
    load: Callable[[], tuple[float, float, float]] = os.getloadavg,
) -> float:
    """Return how many want each CPU, 1.0 at least.

    Args:
        room: What there is.
        busy: Virtual CPUs of all machines.
        load: The host's load averages. They count only where nothing but the host is the limit: a
            cgroup has a share of its own, and the averages are those of all.
    """
    want = max(busy, 1.0)
    if room.cpu_limit == "host":
        # No host that can be had has no load average, but sandboxes of containers have none.
        with contextlib.suppress(OSError):
            want = max(want, load()[0])
    return min(max(1.0, want / room.cpus), _FULLEST)


def processor(
    cache_dir: Path,
    *,
    work: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Return how many times as long as the reference this processor takes; below 1.0 if faster.

    Args:
        cache_dir: Where it is remembered until the host boots again.
        work: The computation.
        clock: Seconds of CPU that this thread had: others' work does not count.
    """
    key = _key()
    path = cache_dir / "speed.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key and 0 < (known := float(stored["processor"])) <= _SLOWEST:
            return known
    best = math.inf
    for _ in range(_ROUNDS):
        began = clock()
        (work or computation)()
        best = min(best, clock() - began)
    # A clock too coarse to see it must not make a scale of nothing.
    found = min(max(best / REFERENCE, 1 / _SLOWEST), _SLOWEST)
    with contextlib.suppress(OSError):
        measured.store(path, {"key": key, "processor": found})
    return found


def computation() -> None:
    """Compute for about 10 ms: branches as an interpreter takes them, and arithmetic in a row.

    Nothing in it is done by special instructions of some processors, as SHA or CRC would be.
    """
    state = 1
    counts: dict[int, int] = {}
    for _ in range(20_000):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        slot = state >> 21
        counts[slot] = counts.get(slot, 0) + (1 if state & 0x1000 else 2)
    hashlib.blake2b(bytes(4 << 20)).digest()


def _key() -> dict[str, str]:
    """Return what a measurement holds for: this boot, this processor, this Python.

    The boot id alone is not enough: a virtual machine resumed on another host keeps it.
    """
    kept = ("vendor_id", "model name", "CPU implementer", "CPU part")
    lines = {line for line in measured.read_text(_CPUINFO).splitlines() if line.startswith(kept)}
    return {
        "boot": measured.read_text(_BOOT_ID).strip(),
        "processor": "; ".join(sorted(lines)),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
