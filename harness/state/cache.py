"""Keeps states on a host: each is built once, by whoever comes first, and lent to all.

The folder is laid out and locked as the store of images is (:mod:`harness.store`): a state is made
in a folder of its own and published by one rename, who makes or removes it holds one lock, who uses
it shares another, and the kernel lets go of both when a process ends. A state that is damaged is
removed, made anew, and told of; it is nobody's failure.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from harness.deadline import NEVER, Deadline
from harness.errors import StateError, StoreError
from harness.spec import GIB, format_size
from harness.state import filesystem
from harness.state.lease import Lease
from harness.state.record import RECORD, Entry, Record, entry_id, is_foreign
from harness.state.snapshot import MANIFEST, Snapshot
from harness.store.layout import Layout
from harness.store.locks import lock, try_lock
from harness.store.space import disk_usage, explained, remove_tree, sync

BUDGET: Final = 20 * GIB
"""Bytes that all states of a host may take on disk."""

_TRIES: Final = 3

Progress = Callable[[str], None]


def _quiet(line: str) -> None:
    del line


class StateCache:
    """The states of a host, in a folder that many processes share.

    Args:
        root: The folder; made when it is first written to.
        budget: Bytes that all states may take on disk; what was not used for longest goes first.
    """

    def __init__(self, root: Path, *, budget: int = BUDGET) -> None:
        self.root = root
        self.budget = budget
        self._layout = Layout(root)

    # --- making and lending -------------------------------------------------------------------

    def lease(
        self,
        name: str,
        inputs: Mapping[str, str],
        key: str,
        build: Callable[[Path], Snapshot],
        *,
        parent: str = "",
        progress: Progress = _quiet,
        deadline: Deadline = NEVER,
    ) -> Lease:
        """Return a state, built first if it is not there or damaged.

        At most one process of the host builds it; the others wait and say so.

        Args:
            name: The state's name.
            inputs: What makes it.
            key: Their digest.
            build: Saves the machine into the folder it is given, which does not exist yet.
            parent: The entry of its parent, which the caller has a lease of.
            progress: Told what is done.
            deadline: When to give up waiting for others.

        Raises:
            StateError: if what is built is damaged again and again.
            StoreError, DiskFullError: if the cache cannot be written.
            WaitTimeoutError: if the deadline passed.
        """
        entry = entry_id(name, key)
        making = self._layout.make_lock(entry)

        def building(pid: int | None) -> None:
            who = f"another process (pid {pid})" if pid else "another process"
            progress(f"{who} is building the state {name}; waiting for it")

        why = ""
        self._prepare()
        for _ in range(_TRIES):
            with explained(self.root, f"looking for the state {name}"):
                lent = self._lend(entry, deadline)
                if isinstance(lent, Lease):
                    return lent
                held = lock(making, deadline=deadline, waiting=building)
            with held:
                # Again: somebody may have made it while we waited.
                fault = self.fault(entry)
                if fault:
                    why = fault
                    progress(f"the state {name} in the cache is damaged, making it anew: {why}")
                    # Whoever uses it has its files open, and is not waited for.
                    with explained(self.root, f"removing the state {name}"):
                        self._remove(self._layout.entry(entry))
                if fault is not None:
                    self._make(entry, name, inputs, key, build, parent, progress)
            with contextlib.suppress(StoreError):
                self.gc(keep={entry, parent}, progress=progress)
        raise StateError(f"the state {name} is damaged as soon as it is built", evidence=why)

    def _prepare(self) -> None:
        with explained(self.root, "making the cache of states"):
            self._layout.make()

    def _make(
        self,
        entry: str,
        name: str,
        inputs: Mapping[str, str],
        key: str,
        build: Callable[[Path], Snapshot],
        parent: str,
        progress: Progress,
    ) -> None:
        temporary = self._layout.temporary(entry)
        made = temporary / "made"
        started = time.monotonic()
        progress(f"building the state {name}")
        with explained(self.root, f"building the state {name}"):
            remove_tree(temporary)  # of a build that was killed
            temporary.mkdir(parents=True)
        try:
            snapshot = build(made)
            seconds = round(time.monotonic() - started, 1)
            record = Record(name, key, inputs, parent, time.time(), seconds, snapshot.cold)
            with explained(self.root, f"publishing the state {name}"):
                record.write(made)
                for path in made.rglob("*"):
                    sync(path)
                sync(made)
                made.rename(self._layout.entry(entry))
                sync(self._layout.entries)
        finally:
            with contextlib.suppress(OSError):
                remove_tree(temporary)
        size = format_size(disk_usage(self._layout.entry(entry)))
        kind = f", disks only: {record.cold}" if record.cold else ""
        progress(f"the state {name} is ready: {size} in {record.seconds:.0f} s{kind}")
        with contextlib.suppress(OSError):
            for lack in filesystem.lacks(self.root):
                progress(f"the file system of {self.root} {lack}")

    def _lend(self, entry: str, deadline: Deadline) -> Lease | None:
        """Return a lease if the entry and those it builds on are whole."""
        with ExitStack() as undo:
            current = entry
            while current:
                if not self._layout.entry(current).exists():
                    return None
                using = self._layout.use_lock(current)
                undo.enter_context(lock(using, shared=True, deadline=deadline))
                if self.fault(current) is not None:
                    return None
                folder = self._layout.entry(current)
                with contextlib.suppress(OSError):  # a cache that is read-only for us still serves
                    os.utime(folder / RECORD)
                record = Record.read(folder)
                current = record.parent if record is not None else ""
            folder = self._layout.entry(entry)
            record = Record.read(folder)
            if record is None:
                return None
            return Lease(entry, Snapshot.read(folder), record, undo.pop_all())

    def fault(self, entry: str) -> str | None:
        """Return why an entry cannot be used, empty if it is not there; ``None`` if it can."""
        folder = self._layout.entry(entry)
        if not folder.exists():
            return ""
        if Record.read(folder) is None:
            return f"{folder / RECORD} is missing or damaged"
        try:
            found = Snapshot.read(folder).faults()
        except StateError as error:
            return error.what
        return "; ".join(found) or None

    def discard(self, lease: Lease, progress: Progress = _quiet) -> None:
        """Declare a state that could not be restored damaged, whoever else uses it; ends the lease.

        The next :meth:`lease`, of any process, builds it anew.
        """
        lease.close()
        progress(f"the state {lease.record.name} could not be restored: it will be built anew")
        with (
            explained(self.root, f"removing the state {lease.record.name}"),
            lock(self._layout.make_lock(lease.entry)),
        ):
            folder = self._layout.entry(lease.entry)
            now = Record.read(folder)
            # Somebody may have built it anew meanwhile.
            if now is not None and now.created == lease.record.created:
                (folder / RECORD).unlink(missing_ok=True)

    # --- looking after ------------------------------------------------------------------------

    def list(self) -> list[Entry]:
        """Return all states, what is being made and what was interrupted; last used first."""
        found = []
        with explained(self.root, "listing the states"):
            for folder in _folders(self._layout.entries):
                found.append(self._look(folder))
            for folder in _folders(self._layout.temporaries):
                busy = self._held(self._layout.make_lock(folder.name))
                status = "building" if busy else "interrupted"
                found.append(self._describe(folder, status, None, ""))
        present = [each for each in found if each is not None]
        return sorted(present, key=lambda each: each.used, reverse=True)

    def newest(self, name: str) -> Record | None:
        """Return the record of the state of this name that was made last."""
        records = [
            entry.record
            for entry in self.list()
            if entry.record is not None and entry.record.name == name
        ]
        return max(records, key=lambda record: record.created, default=None)

    def remove(self, entry: str) -> bool:
        """Remove a state, or what was to become one; whether it was there and not in use.

        Raises:
            StoreError: if it cannot be removed.
        """
        return self._remove_unused(entry)

    def _remove_unused(self, entry: str, *, damaged: bool = False) -> bool:
        """Remove a state, or what was to become one, unless somebody uses it.

        Args:
            entry: Its entry.
            damaged: Leave it if it is whole: somebody made it anew since it was looked at.
        """
        self._prepare()
        gone = False
        with explained(self.root, f"removing {entry}"), self._alone(entry) as alone:
            if not alone or (damaged and self.fault(entry) is None):
                return False
            for folder in (self._layout.entry(entry), self._layout.temporary(entry)):
                if folder.exists():
                    self._remove(folder)
                    gone = True
        return gone

    def _remove_interrupted(self, entry: str) -> bool:
        """Remove what a build left behind; whether it was there and nobody makes it.

        The state itself may be there, and in use: a build that is killed after it has published it
        leaves its empty folder.
        """
        folder = self._layout.temporary(entry)
        with (
            explained(self.root, f"removing what was to become {entry}"),
            self._alone(entry, use=False) as alone,
        ):
            if not alone or not folder.exists():
                return False
            remove_tree(folder)
        return True

    @contextmanager
    def _alone(self, entry: str, *, use: bool = True) -> Iterator[bool]:
        """Hold the locks of an entry, whose files end with the block; whether they were free.

        Args:
            entry: The entry.
            use: Whether that of its users as well.
        """
        locks = [self._layout.make_lock(entry)]
        if use:
            locks.append(self._layout.use_lock(entry))
        with ExitStack() as held:
            for path in locks:
                lock = try_lock(path, sign=False)
                if lock is None:
                    yield False
                    return
                held.enter_context(lock)
                held.callback(path.unlink, missing_ok=True)
            yield True

    def gc(
        self,
        *,
        everything: bool = False,
        keep: frozenset[str] | set[str] = frozenset(),
        progress: Progress = _quiet,
    ) -> int:
        """Remove what was interrupted or is damaged, then what is over the budget.

        Args:
            everything: Remove every state that is not in use.
            keep: Entries that the budget does not count against.
            progress: Told what is done.

        Returns:
            The bytes that it gave back.
        """
        freed = 0
        for entry in self.list():
            if entry.status == "interrupted":
                gone = self._remove_interrupted(entry.id)
            elif everything or entry.status == "damaged":
                gone = self._remove_unused(entry.id, damaged=not everything)
            else:
                continue
            if gone:
                progress(f"removed {entry.id} ({entry.status})")
                freed += entry.bytes
        with explained(self.root, "removing locks of states that are gone"):
            self._layout.remove_abandoned_locks()
        return freed + self.trim(keep=keep, progress=progress)

    def trim(
        self, *, keep: frozenset[str] | set[str] = frozenset(), progress: Progress = _quiet
    ) -> int:
        """Remove states, least recently used first, until the rest is within the budget.

        A state that another builds on goes after that one. Nothing in use is removed. What another
        version of Harness made counts and goes as all do: that version may be gone for good.

        Returns:
            The bytes that it gave back.
        """
        entries = self.list()
        total = sum(entry.bytes for entry in entries)
        freed = 0
        tried: set[str] = set(keep)
        while total - freed > self.budget:
            needed = {entry.record.parent for entry in entries if entry.record is not None}
            leaves = [
                entry
                for entry in entries
                if entry.id not in tried
                and entry.id not in needed
                and entry.status in ("ready", "foreign")
            ]
            if not leaves:
                break
            oldest = leaves[-1]
            tried.add(oldest.id)
            with contextlib.suppress(StoreError):
                if self.remove(oldest.id):
                    progress(f"removed the state {oldest.id}: over the budget")
                    freed += oldest.bytes
                    entries.remove(oldest)
        return freed

    def _remove(self, folder: Path) -> None:
        """Remove a folder; for who holds its locks alone."""
        if folder.parent == self._layout.entries:
            # Out of sight by one rename: half a state is never seen.
            temporary = self._layout.temporary(folder.name)
            remove_tree(temporary)
            folder.rename(temporary)
            folder = temporary
        remove_tree(folder)

    def _look(self, folder: Path) -> Entry | None:
        why = self.fault(folder.name)
        if why == "":
            return None
        if why is not None and is_foreign(folder):
            return self._describe(folder, "foreign", None, "made by another version of Harness")
        if why is not None:
            return self._describe(folder, "damaged", Record.read(folder), why)
        in_use = self._held(self._layout.use_lock(folder.name))
        return self._describe(folder, "in use" if in_use else "ready", Record.read(folder), "")

    @staticmethod
    def _describe(folder: Path, status: str, record: Record | None, why: str) -> Entry | None:
        try:
            stamp = folder / RECORD
            used = (stamp if stamp.exists() else folder).stat().st_mtime
        except FileNotFoundError:
            return None
        return Entry(folder.name, folder, status, disk_usage(folder), used, record, why)

    @staticmethod
    def _held(path: Path) -> bool:
        if not path.exists():
            return False
        free = try_lock(path, sign=False)
        if free is not None:
            free.release()
        return free is None


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from sorted(parent.iterdir())


__all__ = ["BUDGET", "MANIFEST", "Entry", "Lease", "Record", "StateCache", "entry_id", "sync"]
