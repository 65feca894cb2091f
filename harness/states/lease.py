"""A saved state in use."""

from __future__ import annotations

from contextlib import ExitStack

from harness import cache
from harness.states.manifest import StateManifest
from harness.states.snapshot import Snapshot


class Lease(cache.Lease[StateManifest]):
    """A saved state that no process removes until :meth:`close`, or until this process ends.

    The states that it builds on are in use, too.

    Attributes:
        snapshot: The saved machine.
    """

    def __init__(
        self, entry: str, snapshot: Snapshot, manifest: StateManifest, locks: ExitStack
    ) -> None:
        super().__init__(entry, snapshot.folder, manifest, locks)
        self.snapshot = snapshot
