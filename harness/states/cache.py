"""The saved states of a host: each is built once, then lent to every run.

A damaged state is removed and built again, with a line of progress; no test fails because of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final

from harness.cache import Cache, Layout, Say, Status, quiet
from harness.cache.locks import Lock, lock
from harness.cache.space import explained
from harness.deadline import NEVER, Deadline
from harness.errors import HarnessError, StateError, StoreError
from harness.spec import GIB
from harness.states import filesystem
from harness.states.group import Group, read_saved
from harness.states.lease import Lease
from harness.states.manifest import FILE, StateManifest, entry_id, is_foreign
from harness.states.snapshot import Snapshot

BUDGET: Final = 20 * GIB
"""Bytes that all saved states of a host may take on disk."""


class StateCache(Cache[StateManifest, Lease]):
    """The saved states of a host, in a folder that many processes share.

    Args:
        root: The folder; it is made at the first build.
        budget: Bytes that all states may take on disk; beyond it, the least recently used ones go.
    """

    MANIFEST: ClassVar[str] = FILE
    # A fork has opened all files of its state, so a damaged state can go while forks of it run.
    waits_for_users: ClassVar[bool] = False
    failure: ClassVar[type[HarnessError]] = StateError

    def __init__(self, root: Path, *, budget: int = BUDGET) -> None:
        super().__init__(Layout(root))
        self.budget = budget

    # --- hooks of the cache -------------------------------------------------------------------

    def _read(self, folder: Path) -> StateManifest | None:
        return StateManifest.read(folder)

    def _faults(self, folder: Path, manifest: StateManifest) -> Sequence[str]:
        del manifest
        try:
            return read_saved(folder).faults()
        except StateError as error:
            return [error.what]

    def _lease(self, entry: str, manifest: StateManifest, locks: ExitStack) -> Lease:
        try:
            return Lease(entry, read_saved(self._layout.entry(entry)), manifest, locks)
        except BaseException:
            locks.close()
            raise

    def _foreign(self, folder: Path) -> str:
        return "made by another version of Harness" if is_foreign(folder) else ""

    def _hold(self, entry: str, deadline: Deadline, locks: ExitStack) -> StateManifest | None:
        """Share the locks of a state and of the states that it builds on, if all are whole."""
        manifest = super()._hold(entry, deadline, locks)
        if manifest is None or not manifest.parent:
            return manifest
        return manifest if self._hold(manifest.parent, deadline, locks) is not None else None

    # --- building and lending -----------------------------------------------------------------

    def lease(
        self,
        name: str,
        inputs: Mapping[str, str],
        key: str,
        build: Callable[[Path], Snapshot | Group],
        *,
        parent: str = "",
        say: Say = quiet,
        deadline: Deadline = NEVER,
    ) -> Lease:
        """Return a lease of a state, built first if it is missing or damaged.

        At most one process of the host builds it; the others wait and say so. Surplus states are
        removed after the build.

        Args:
            name: The name of the state.
            inputs: Everything that decides its content, by name.
            key: The digest of the inputs.
            build: Saves the machine, or those of a cluster, into a folder, which does not exist yet.
            parent: The entry of its parent; the caller holds a lease of it.
            say: Takes lines of progress.
            deadline: The end of waiting for other processes.

        Raises:
            StateError: The state is damaged each time it is built.
            StoreError, DiskFullError: The cache cannot be written.
            WaitTimeoutError: The deadline passed.
        """

        def save(folder: Path, making: Lock) -> None:
            del making  # the build starts machines, which end with this process
            say(f"building the state {name}")
            started = time.monotonic()
            saved = build(folder)
            manifest = StateManifest(
                name=name,
                key=key,
                inputs=dict(inputs),
                parent=parent,
                created=time.time(),
                seconds=round(time.monotonic() - started, 1),
                cold=saved.cold,
                machines=saved.machines,
            )
            with explained(self.root, f"publishing the state {name}"):
                manifest.write(folder)

        return self._obtain(
            entry_id(name, key), f"the state {name}", save, say=say, deadline=deadline
        )

    def _built(self, lease: Lease, description: str, say: Say) -> None:
        super()._built(lease, description, say)
        if lease.manifest.cold:
            say(f"{description} has disks only: {lease.manifest.cold}")
        with contextlib.suppress(OSError):
            for lack in filesystem.lacks(self.root):
                say(f"the file system of {self.root} {lack}")
        with contextlib.suppress(StoreError):
            self.gc(keep={lease.entry, lease.manifest.parent}, say=say)

    def discard(
        self, lease: Lease, say: Say = quiet, why: str = "it could not be restored"
    ) -> None:
        """Mark a state as damaged, and end the lease.

        Other processes may still use the state. The next :meth:`lease`, of any process, builds it
        again.
        """
        lease.close()
        name = lease.manifest.name
        say(f"the state {name} will be built again: {why}")
        with (
            explained(self.root, f"removing the state {name}"),
            lock(self._layout.make_lock(lease.entry)),
        ):
            manifest = StateManifest.read(lease.folder)
            # Another process may have built it again meanwhile.
            if manifest is not None and manifest.created == lease.manifest.created:
                (lease.folder / FILE).unlink(missing_ok=True)

    # --- listing and removing -----------------------------------------------------------------

    def newest(self, name: str) -> StateManifest | None:
        """Return the manifest of the state of this name that was built last."""
        manifests = [entry.manifest for entry in self.list() if entry.manifest is not None]
        named = [manifest for manifest in manifests if manifest.name == name]
        return max(named, key=lambda manifest: manifest.created, default=None)

    def gc(
        self,
        *,
        everything: bool = False,
        keep: Collection[str] = (),
        say: Say = quiet,
    ) -> int:
        """Remove interrupted and damaged states, then surplus ones.

        Args:
            everything: Remove every state that is not in use.
            keep: The entries that the budget does not remove.
            say: Takes a line for each state that was removed.

        Returns:
            The bytes that were freed.

        Raises:
            StoreError: A state cannot be removed; the others are.
        """
        collected = self._collect(lambda entry: False, everything=everything, say=say)
        freed = collected.bytes + self.trim(keep=keep, say=say)
        if collected.failed:
            raise StoreError(
                f"{len(collected.failed)} states could not be removed",
                evidence="\n".join(collected.failed),
                hint="check the paths above and their disk",
            )
        return freed

    def trim(self, *, keep: Collection[str] = (), say: Say = quiet) -> int:
        """Remove states, least recently used first, until the rest is within the budget.

        A state goes only after the states that build on it. States in use stay. States of another
        version of Harness count and go like all others, since that version may not be used any more.

        Args:
            keep: The entries that stay.
            say: Takes a line for each state that was removed.

        Returns:
            The bytes that were freed.
        """
        entries = self.list()
        total = sum(entry.bytes for entry in entries)
        freed = 0
        tried = set(keep)
        while total - freed > self.budget:
            parents = {entry.manifest.parent for entry in entries if entry.manifest is not None}
            leaves = [
                entry
                for entry in entries
                if entry.id not in tried
                and entry.id not in parents
                and entry.status in (Status.READY, Status.FOREIGN)
            ]
            if not leaves:
                break
            oldest = leaves[-1]
            tried.add(oldest.id)
            with contextlib.suppress(StoreError):
                if self.remove(oldest.id):
                    say(f"removed the state {oldest.id}: over the budget")
                    freed += oldest.bytes
                    entries.remove(oldest)
        return freed


__all__ = ["BUDGET", "Lease", "StateCache", "StateManifest"]
