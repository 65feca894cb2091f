"""The CPU of this host."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path


@functools.cache
def vendor() -> str:
    """Return the vendor of the CPU: ``GenuineIntel``; on Arm the implementer: ``0x41``.

    ``/proc/cpuinfo`` has it as ``vendor_id`` or ``CPU implementer``; empty if it has neither.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("vendor_id", "CPU implementer"):
                return value.strip()
    return ""
