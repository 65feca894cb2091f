"""A saved state in use."""

from __future__ import annotations

from contextlib import ExitStack

from harness import cache
from harness.errors import UsageError
from harness.states.group import Group
from harness.states.manifest import StateManifest
from harness.states.snapshot import Snapshot


class Lease(cache.Lease[StateManifest]):
    """A saved state that no process removes until :meth:`close`, or until this process ends.

    The states that it builds on are in use, too.

    Attributes:
        saved: The saved machine, or the saved machines of a state of a cluster.
    """

    def __init__(
        self, entry: str, saved: Snapshot | Group, manifest: StateManifest, locks: ExitStack
    ) -> None:
        super().__init__(entry, saved.folder, manifest, locks)
        self.saved = saved

    @property
    def snapshot(self) -> Snapshot:
        """The saved machine.

        Raises:
            UsageError: The state is one of a cluster.
        """
        if isinstance(self.saved, Group):
            count = len(self.saved.snapshots)
            raise UsageError(
                f"the state {self.manifest.name} is one of a cluster, of {count} machines",
                hint="lab.fork_cluster(...) starts all of them",
            )
        return self.saved

    @property
    def group(self) -> Group:
        """The saved machines of a state of a cluster.

        Raises:
            UsageError: The state is one of a single machine.
        """
        if isinstance(self.saved, Snapshot):
            raise UsageError(
                f"the state {self.manifest.name} is one of a single machine",
                hint="lab.fork(...) starts it",
            )
        return self.saved
