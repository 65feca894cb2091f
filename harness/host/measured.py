"""Measurements of this host, kept in the cache for later processes, and the facts they depend on.

A measurement is stored with a key. It is valid only while the key is the same: the boot of the host,
its processor, and the programs that were measured.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Final

from harness import jsonfile

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
CPUINFO: Final = Path("/proc/cpuinfo")


def boot_id() -> str:
    """Return the id of this boot of the host; empty if the kernel does not show it.

    A virtual machine that is resumed on another host keeps its boot id.
    """
    return _read_text(BOOT_ID).strip()


def processor(*fields: str) -> list[str]:
    """Return the distinct lines of ``/proc/cpuinfo`` with these fields, sorted.

    Fields such as "cpu MHz" differ from one reading to the next, so a key names the stable ones.
    """
    return sorted({line for line in _read_text(CPUINFO).splitlines() if line.startswith(fields)})


def recall(path: Path, key: dict[str, str]) -> dict[str, Any] | None:
    """Return the measurement stored in ``path`` under ``key``, or ``None``."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key and isinstance(stored["measured"], dict):
            return stored["measured"]
    return None


def store(path: Path, key: dict[str, str], measurement: dict[str, Any]) -> None:
    """Store a measurement atomically; does nothing if the cache cannot be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        jsonfile.write(path, {"key": key, "measured": measurement})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
