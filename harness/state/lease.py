"""A state that is in use: nobody removes it meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from harness.state.record import Record
from harness.state.snapshot import Snapshot


class Lease:
    """A state that nobody removes until :meth:`close`, or until this process ends.

    Attributes:
        entry: The name of its folder.
        snapshot: The saved machine.
        record: What it says of itself.
    """

    def __init__(self, entry: str, snapshot: Snapshot, record: Record, held: ExitStack) -> None:
        self.entry = entry
        self.snapshot = snapshot
        self.record = record
        self._held = held

    def close(self) -> None:
        """Say that it is not used any more."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
