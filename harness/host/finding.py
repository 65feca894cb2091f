"""What a check of this host found: a line of ``harness doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: The subject: ``qemu x86_64``, ``memory``.
        ok: Whether it serves.
        text: The finding, for people; further lines are indented below the first.
        data: The finding, for programs.
        needed: Whether Harness cannot work without it.
    """

    name: str
    ok: bool
    text: str
    data: Any = None
    needed: bool = True
