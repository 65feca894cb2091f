"""How slow this host is when calm, compared with a good one under KVM: the factor for deadlines.

The factor is the product of two parts. The accelerator: emulation is slower than KVM by a known factor
for each architecture. The processor: the time of a short computation on one thread, measured once per
boot of the host, relative to :data:`REFERENCE`. Other machines and other load come and go:
:mod:`harness.host.pressure` follows them.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness import arch as arches
from harness.errors import UnknownNameError
from harness.host import measured

REFERENCE: Final = 0.0082
"""CPU seconds that the computation takes, with Python 3.11, on the host where the times in
:mod:`harness.arch` were measured. Python 3.12 and 3.13 take an eighth longer there.
"""

ACCELERATORS: Final = ("kvm", "tcg")

_SLOWEST: Final = 16.0  # times the reference; larger values are measuring errors
_ROUNDS: Final = 7


def measure(accel: str, arch: str, cache_dir: Path) -> float:
    """Return the factor for deadlines, at least 1.0: see :class:`harness.deadline.Scale`.

    The first call after a boot of the host takes a tenth of a second, later calls no time.

    Args:
        accel: ``kvm`` or ``tcg``.
        arch: The guest's architecture.
        cache_dir: The folder for the processor's measurement; created if absent. If it cannot be
            written, nothing is stored.

    Raises:
        UnknownNameError: Harness has no such accelerator or arch.
    """
    if accel not in ACCELERATORS:
        raise UnknownNameError("accelerator", accel, ACCELERATORS)
    emulation = arches.of(arch).emulation if accel == "tcg" else 1.0
    return max(1.0, emulation * processor(cache_dir))


def processor(
    cache_dir: Path,
    *,
    work: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Return this processor's time for the computation relative to the reference; below 1.0 if faster.

    Args:
        cache_dir: The folder that stores the result until the host reboots.
        work: The computation.
        clock: Returns the CPU seconds of this thread, which exclude the work of others.
    """
    key = _key()
    path = cache_dir / "speed.json"
    match measured.recall(path, key):
        case {"processor": float(times)} if 0 < times <= _SLOWEST:
            return times
    best = math.inf
    for _ in range(_ROUNDS):
        start = clock()
        (work or computation)()
        best = min(best, clock() - start)
    # The bounds protect against a clock too coarse to measure the computation.
    times = min(max(best / REFERENCE, 1 / _SLOWEST), _SLOWEST)
    measured.store(path, key, {"processor": times})
    return times


def computation() -> None:
    """Compute for about 10 ms: the branches of an interpreter, and plain arithmetic.

    It avoids SHA and CRC, for which some processors have special instructions.
    """
    state = 1
    counts: dict[int, int] = {}
    for _ in range(20_000):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        bucket = state >> 21
        counts[bucket] = counts.get(bucket, 0) + (1 if state & 0x1000 else 2)
    hashlib.blake2b(bytes(4 << 20)).digest()


def _key() -> dict[str, str]:
    """Return the key of a measurement: this boot, this processor, this Python."""
    lines = measured.processor("vendor_id", "model name", "CPU implementer", "CPU part")
    return {
        "boot": measured.boot_id(),
        "processor": "; ".join(lines),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
