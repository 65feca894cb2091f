"""Inserts a filter between a disk and its file while the guest runs.

A filter node is added over the node that the disk's device uses, and the device's property ``drive`` is
set to it. QEMU allows that while the device is in use, and drains the device's requests before and
after. QEMU's own test ``tests/qemu-iotests/tests/image-fleecing`` inserts its filter in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import QmpError, UsageError
from harness.qemu.qmp import Qmp

EIO = 5
"""The error number of an I/O error on Linux (``errno(3)``)."""

MOST_SECTORS = 4096
"""The most sectors of a fault: blkdebug has no ranges, and tries each rule for each request."""

REQUESTS = ("read", "write", "write-zeroes", "discard", "flush")
"""The kinds of requests that can fail, by QEMU's names (``BlkdebugIOType``)."""

WRITES = ("write", "write-zeroes")
"""The kinds of requests that fail on a disk that has no space left."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How a disk fails: a request of these kinds ends in an I/O error.

    Attributes:
        on: The kinds of requests: ``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``.
        sectors: The sectors of 512 bytes whose requests fail; all if ``None``.
        after: The number of writes that succeed before the fault begins.
        once: Whether only the first request fails.

    Raises:
        UsageError: The fault would never apply, or QEMU does not know it.
    """

    on: tuple[str, ...] = REQUESTS
    sectors: range | None = None
    after: int = 0
    once: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.on if name not in REQUESTS]:
            raise UsageError(
                f"unknown request {', '.join(map(repr, unknown))} (choose {', '.join(REQUESTS)})"
            )
        if not self.on or self.after < 0:
            raise UsageError("Fault.on must name a request; Fault.after must be >= 0")
        if self.sectors is not None and not 0 < len(self.sectors) <= MOST_SECTORS:
            raise UsageError(
                f"Fault.sectors must have 1 to {MOST_SECTORS} sectors, not {len(self.sectors)}",
                hint="name every eighth sector: a file system reads and writes 4 KiB",
            )

    def rules(self) -> dict[str, Any]:
        """Return the rules for ``blkdebug`` (``BlockdevOptionsBlkdebug`` in QEMU's QMP reference).

        blkdebug's state begins at 1; here it counts writes up to :attr:`after`. The event ``none``
        happens once, when the filter is added; ``pwritev`` happens before each write of data, and
        ``pwritev_zero`` before each write of zeros.
        """
        begins: Sequence[dict[str, Any]] = [{"event": "none"}]
        rules: dict[str, Any] = {}
        if self.after:
            events = ("pwritev", "pwritev_zero")
            rules["set-state"] = [
                {"event": event, "state": number, "new_state": number + 1}
                for number in range(1, self.after + 1)
                for event in events
            ]
            begins = [{"event": event, "state": self.after + 1} for event in events]
        where: Sequence[dict[str, Any]] = [{}]
        if self.sectors is not None:
            where = [{"sector": sector} for sector in self.sectors]
        rules["inject-error"] = [
            {**begin, **place, "iotype": kind, "errno": EIO, "once": self.once}
            for begin in begins
            for kind in self.on
            for place in where
        ]
        return rules


def recorder(below: str, log: Path) -> dict[str, Any]:
    """Return the options of a filter that logs every write, flush and discard to ``log``.

    The log's super block is updated with each entry, because a machine may be killed at any time. The
    log's file is not flushed to the host's disk: Harness reads it through the host's page cache.
    """
    return {
        "driver": "blklogwrites",
        "file": below,
        "log": {"driver": "file", "filename": str(log), "cache": {"no-flush": True}},
        "log-super-update-interval": 1,
    }


def faulty(below: str, fault: Fault) -> dict[str, Any]:
    """Return the options of a filter that fails requests."""
    return {"driver": "blkdebug", "image": below, **fault.rules()}


class Filters:
    """The filters of one machine's disks; the last filter inserted is on top.

    Args:
        qmp: The machine's monitor.
    """

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._stacks: dict[str, list[str]] = {}

    def top(self, disk: str) -> str:
        """Return the node that the disk's device uses."""
        stack = self._stacks.get(disk)
        return stack[-1] if stack else f"disk-{disk}"

    def has(self, disk: str, kind: str) -> bool:
        """Return whether the disk has a filter of this kind."""
        return f"{kind}-{disk}" in self._stacks.get(disk, [])

    def insert(self, disk: str, kind: str, options: Mapping[str, Any]) -> None:
        """Insert a filter on top of the disk's other filters.

        Args:
            disk: The disk.
            kind: The first word of the filter's node name.
            options: The node's options, from :func:`recorder` or :func:`faulty`.

        Raises:
            UsageError: The disk has a filter of this kind.
            QmpError: QEMU refused.
        """
        node = f"{kind}-{disk}"
        if self.has(disk, kind):
            raise UsageError(f"disk {disk} has a filter {node} already")
        self._qmp.execute("blockdev-add", {"node-name": node, **options})
        try:
            self._point(disk, node)
        except QmpError:
            self._qmp.execute("blockdev-del", {"node-name": node})
            raise
        self._stacks.setdefault(disk, []).append(node)

    def remove(self, disk: str, kind: str) -> None:
        """Remove the filter on top.

        Raises:
            UsageError: The filter on top is of another kind, or there is none.
            QmpError: QEMU refused.
        """
        node = f"{kind}-{disk}"
        stack = self._stacks.get(disk, [])
        if not stack or stack[-1] != node:
            raise UsageError(f"disk {disk} has no filter {node} on top; it has {stack or 'none'}")
        stack.pop()
        self._point(disk, self.top(disk))
        self._qmp.execute("blockdev-del", {"node-name": node})

    def _point(self, disk: str, node: str) -> None:
        self._qmp.execute(
            "qom-set", {"path": f"/machine/peripheral/{disk}", "property": "drive", "value": node}
        )
