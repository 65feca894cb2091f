"""Puts a filter between a disk and its file while the guest runs.

A filter node is made over the node that the disk's device uses, and the device is pointed at it: QEMU
lets the property ``drive`` of a device that is in use be set, and drains the device's requests around
it. QEMU's own test ``tests/qemu-iotests/tests/image-fleecing`` puts its filter in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import QmpError, UsageError
from harness.qemu.qmp import Qmp

EIO = 5
"""The number of the error that a disk's failure is, on every Linux (``errno(3)``)."""

MOST_SECTORS = 4096
"""How many sectors a fault can name: blkdebug has no ranges, and looks at each rule for each request."""

REQUESTS = ("read", "write", "write-zeroes", "discard", "flush")
"""The kinds of requests that can fail, as QEMU calls them (``BlkdebugIOType``)."""

WRITES = ("write", "write-zeroes")
"""What fails on a disk that has no space left."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How a disk fails: a request of these kinds ends in an I/O error.

    Attributes:
        on: The kinds of requests: ``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``.
        sectors: Only requests that touch one of these sectors of 512 bytes; all if ``None``.
        after: How many writes are done before it begins.
        once: Whether only the first one fails.
    """

    on: tuple[str, ...] = REQUESTS
    sectors: range | None = None
    after: int = 0
    once: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.on if name not in REQUESTS]:
            raise UsageError(
                f"a disk has no requests named {', '.join(unknown)}",
                hint=f"known: {', '.join(REQUESTS)}",
            )
        if not self.on or self.after < 0:
            raise UsageError("a fault is on some requests, after 0 or more writes")
        if self.sectors is not None and not 0 < len(self.sectors) <= MOST_SECTORS:
            raise UsageError(
                f"a fault names 1 to {MOST_SECTORS} sectors, not {len(self.sectors)}",
                hint="name every eighth one: a file system reads and writes 4 KiB",
            )

    def rules(self) -> dict[str, Any]:
        """Return the rules for ``blkdebug`` (``BlockdevOptionsBlkdebug`` in QEMU's QMP reference).

        Its state is 1 at first and counts writes up to :attr:`after`; its event ``none`` happens
        once, when the filter is made, and ``pwritev`` before each write, of zeros ``pwritev_zero``.
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

    The log's head is brought up to date with each entry: a machine may be killed at any time. A
    flush ends at the filter; what it would cost on the host buys nothing.
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
    """The filters of one machine's disks, the last that was put in on top.

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
        """Whether a filter of this kind is in the disk's way."""
        return f"{kind}-{disk}" in self._stacks.get(disk, [])

    def insert(self, disk: str, kind: str, options: Mapping[str, Any]) -> None:
        """Put a filter on top.

        Args:
            disk: The disk.
            kind: A word for its node's name.
            options: As :func:`recorder` and :func:`faulty` give them.

        Raises:
            UsageError: if there is one of this kind.
            QmpError: if QEMU refuses.
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
        """Take the filter on top away.

        Raises:
            UsageError: if the one on top is of another kind, or there is none.
            QmpError: if QEMU refuses.
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
