"""A cache of entries that many processes share: builds, lends, lists and removes them."""

from __future__ import annotations

import builtins
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final, Generic, TypeVar

from harness.cache.entry import Collected, Entry, Lease, ManifestT, Say, Status, quiet
from harness.cache.layout import Layout
from harness.cache.locks import Lock, lock, try_lock
from harness.cache.space import disk_usage, explained, remove_tree, sync
from harness.deadline import NEVER, Deadline
from harness.errors import HarnessError, StoreError
from harness.spec import format_size

_TRIES: Final = 3
"""Builds of one entry in a row that may turn out damaged."""

LeaseT = TypeVar("LeaseT", bound=Lease)  # type: ignore[type-arg]

Build = Callable[[Path, Lock], None]
"""Builds an entry, manifest included, in a folder that does not exist yet.

The folder has a parent of its own, whose further contents are dropped. A child process that inherits the
lock keeps other builds of the entry waiting until it ends.
"""


class Cache(ABC, Generic[ManifestT, LeaseT]):
    """Entries in a folder.

    An entry is named by the digest of all its inputs, so it never becomes invalid; it can be damaged. A
    subclass knows how an entry is built and checked.

    Args:
        layout: The folders; they are made at the first build.

    Attributes:
        MANIFEST: The file name of an entry's manifest. Its time of change is the entry's last use.
        waits_for_users: Whether a damaged entry stays until its users are done. Otherwise it is
            replaced at once: its users have opened all of its files that they need.
        failure: The error of an entry that cannot be used.
    """

    MANIFEST: ClassVar[str]
    waits_for_users: ClassVar[bool] = True
    failure: ClassVar[type[HarnessError]] = StoreError

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def root(self) -> Path:
        """The folder of the cache."""
        return self._layout.root

    # --- hooks for a subclass ----------------------------------------------------------------

    @abstractmethod
    def _read(self, folder: Path) -> ManifestT | None:
        """Return the manifest in a folder; ``None`` if it is missing, damaged or foreign."""

    @abstractmethod
    def _faults(self, folder: Path, manifest: ManifestT) -> Sequence[str]:
        """Return the faults of an entry's files, a sentence each; takes little time."""

    @abstractmethod
    def _lease(self, entry: str, manifest: ManifestT, locks: ExitStack) -> LeaseT:
        """Return the lease of an entry; it closes the locks."""

    def _foreign(self, folder: Path) -> str:
        """Return why an entry belongs to another version of Harness; empty if it does not."""
        del folder
        return ""

    # --- building and lending -----------------------------------------------------------------

    def lend(self, entry: str, deadline: Deadline = NEVER) -> LeaseT:
        """Return a lease of a complete entry; a missing or damaged one is not built.

        Raises:
            StoreError, StateError: The entry does not exist, or is damaged.
            WaitTimeoutError: The deadline passed while another process removed the entry.
        """
        with explained(self.root, f"looking for {entry}"):
            lease = self._lend(entry, deadline)
        if lease is None:
            reason = self.fault(entry) or "it, or an entry that it builds on, does not exist"
            raise self.failure(f"{entry} cannot be used: {reason}")
        return lease

    def fault(self, entry: str) -> str | None:
        """Return the fault of an entry: ``None`` if it is whole, empty if it does not exist."""
        folder = self._layout.entry(entry)
        if not folder.exists():
            return ""
        manifest = self._read(folder)
        if manifest is None:
            return f"{folder / self.MANIFEST} is missing or damaged"
        return "; ".join(self._faults(folder, manifest)) or None

    def _obtain(
        self, entry: str, description: str, build: Build, *, say: Say, deadline: Deadline
    ) -> LeaseT:
        """Return a lease of an entry, built first if it is missing or damaged.

        At most one process of the host builds it; the others wait and say so. An interrupted build
        never counts as an entry.

        Args:
            entry: The name of its folder.
            description: The entry in messages.
            build: Builds it.
            say: Takes lines of progress.
            deadline: The end of waiting for other processes.

        Raises:
            StoreError, StateError: The entry is damaged each time it is built.
            StoreError, DiskFullError: The cache cannot be written.
            WaitTimeoutError: The deadline passed.
        """

        def building(pid: int | None) -> None:
            process = f"another process (pid {pid})" if pid else "another process"
            say(f"{process} is building {description}; waiting for it")

        def in_use(pid: int | None) -> None:
            del pid
            say(f"{description} is in use; waiting until its users are done")

        with explained(self.root, f"making {description}"):
            self._layout.make()
            if (lease := self._lend(entry, deadline)) is not None:
                return lease
        for _ in range(_TRIES):
            with explained(self.root, f"making {description}"):
                making = lock(self._layout.make_lock(entry), deadline=deadline, waiting=building)
            with making:
                with explained(self.root, f"making {description}"):
                    # Another process may have built it during the wait for the lock.
                    if fault := self.fault(entry):
                        say(f"{description} in the cache is damaged; rebuilding it: {fault}")
                        with ExitStack() as alone:
                            if self.waits_for_users:
                                using = self._layout.use_lock(entry)
                                alone.enter_context(lock(using, deadline=deadline, waiting=in_use))
                            self._remove_folder(self._layout.entry(entry))
                if fault is not None:
                    self._build(entry, description, build, making)
                # Under the lock still: no process can remove it before it is in use.
                with explained(self.root, f"making {description}"):
                    lease = self._lend(entry, deadline)
            if lease is not None:
                if fault is not None:
                    self._built(lease, description, say)
                return lease
        raise self.failure(
            f"{description} cannot be used as soon as it is built",
            evidence=self.fault(entry) or "an entry that it builds on is missing or damaged",
        )

    def _built(self, lease: LeaseT, description: str, say: Say) -> None:
        """Report an entry that has just been built, once its lock is free again."""
        size = format_size(disk_usage(lease.folder))
        say(f"{description} is ready: {size} in {lease.manifest.seconds:.0f} s")

    def _build(self, entry: str, description: str, build: Build, making: Lock) -> None:
        """Build an entry and publish it; the caller holds the lock ``making``."""
        draft = self._layout.draft(entry)
        try:
            with explained(self.root, f"making {description}"):
                remove_tree(draft)  # a killed build may have left it
                draft.mkdir(parents=True)
            folder = draft / "entry"
            build(folder, making)
            with explained(self.root, f"publishing {description}"):
                for path in folder.rglob("*"):
                    sync(path)
                sync(folder)
                folder.rename(self._layout.entry(entry))
                sync(self._layout.entries)
        finally:
            # An error here would hide the first one; the next build removes the folder.
            with suppress(OSError):
                remove_tree(draft)

    def _lend(self, entry: str, deadline: Deadline) -> LeaseT | None:
        """Return a lease of an entry that is whole; otherwise ``None``."""
        with ExitStack() as locks:
            manifest = self._hold(entry, deadline, locks)
            return None if manifest is None else self._lease(entry, manifest, locks.pop_all())

    def _hold(self, entry: str, deadline: Deadline, locks: ExitStack) -> ManifestT | None:
        """Share the lock of an entry's users; return the manifest if the entry is whole."""
        folder = self._layout.entry(entry)
        if not folder.exists():
            return None
        using = self._layout.use_lock(entry)
        # A person may have copied the entry into an empty cache.
        using.parent.mkdir(exist_ok=True)
        locks.enter_context(lock(using, shared=True, deadline=deadline))
        if self.fault(entry) is not None:
            return None
        with suppress(OSError):  # this user may read the cache and not write to it
            os.utime(folder / self.MANIFEST)
        return self._read(folder)

    # --- listing and removing -----------------------------------------------------------------

    def list(self) -> builtins.list[Entry[ManifestT]]:
        """Return all entries, complete or not; the last used one first.

        Raises:
            StoreError: The cache cannot be read.
        """
        with explained(self.root, "listing the cache"):
            entries = [self._describe(folder) for folder in self._layout.folders()]
        present = [entry for entry in entries if entry is not None]
        return sorted(present, key=lambda entry: entry.used, reverse=True)

    def _describe(self, folder: Path) -> Entry[ManifestT] | None:
        manifest, why = None, ""
        if folder.parent == self._layout.drafts:
            making = _held(self._layout.make_lock(folder.name))
            status = Status.BUILDING if making else Status.INTERRUPTED
        else:
            manifest = self._read(folder)
            why = self.fault(folder.name) or ""
            if not why:
                using = _held(self._layout.use_lock(folder.name))
                status = Status.IN_USE if using else Status.READY
            elif reason := self._foreign(folder):
                status, why = Status.FOREIGN, reason
            else:
                status = Status.DAMAGED
        try:
            stamp = folder / self.MANIFEST
            used = (stamp if stamp.exists() else folder).stat().st_mtime
        except FileNotFoundError:
            return None  # another process has just removed it
        return Entry(
            id=folder.name,
            path=folder,
            status=status,
            bytes=disk_usage(folder),
            created=manifest.created if manifest is not None else used,
            used=used,
            manifest=manifest,
            why=why,
        )

    def remove(self, entry: str) -> bool:
        """Remove an entry and the rest of its builds, unless it is in use or being built.

        Returns:
            Whether something was removed.

        Raises:
            StoreError: The entry cannot be removed.
        """
        with explained(self.root, f"removing {entry}"):
            return self._remove(entry)

    def _remove(self, entry: str, *, only_damaged: bool = False, dry_run: bool = False) -> bool:
        """Remove an entry as :meth:`remove` does.

        Args:
            entry: The name of its folder.
            only_damaged: Keep it if it is whole: another process may have built it again.
            dry_run: Only find out whether it would be removed.

        Raises:
            OSError: The entry cannot be removed.
        """
        paths = (self._layout.entry(entry), self._layout.draft(entry))
        if not any(path.exists() for path in paths):
            return False
        locks = (self._layout.make_lock(entry), self._layout.use_lock(entry))
        with self._alone(locks, dry_run=dry_run) as alone:
            if not alone or (only_damaged and self.fault(entry) is None):
                return False
            folders = [path for path in paths if path.exists()]
            if not dry_run:
                for folder in folders:
                    self._remove_folder(folder)
            return bool(folders)

    def _remove_draft(self, entry: str, *, dry_run: bool) -> bool:
        """Remove the rest of a build, unless the build goes on.

        The entry itself may be complete and in use: a process that is killed right after it has
        published an entry leaves an empty folder.
        """
        folder = self._layout.draft(entry)
        with self._alone((self._layout.make_lock(entry),), dry_run=dry_run) as alone:
            if not alone or not folder.exists():
                return False
            if not dry_run:
                remove_tree(folder)
            return True

    def _remove_folder(self, folder: Path) -> None:
        """Remove the folder of an entry; the caller holds its locks alone."""
        if folder.parent == self._layout.entries:
            # Out of sight by one rename: no process sees half an entry.
            draft = self._layout.draft(folder.name)
            remove_tree(draft)
            folder.rename(draft)
            folder = draft
        remove_tree(folder)

    @contextmanager
    def _alone(self, locks: Sequence[Path], *, dry_run: bool) -> Iterator[bool]:
        """Hold locks alone if all are free, and remove their files; yield whether they were free."""
        with ExitStack() as held:
            for path in locks:
                alone = try_lock(path, sign=False)
                if alone is None:
                    yield False
                    return
                held.enter_context(alone)
                if not dry_run:
                    held.callback(path.unlink, missing_ok=True)
            yield True

    def _collect(
        self,
        is_garbage: Callable[[Entry[ManifestT]], bool],
        *,
        everything: bool = False,
        dry_run: bool = False,
        say: Say = quiet,
    ) -> Collected[ManifestT]:
        """Remove garbage, the least recently used entry first; never an entry in use.

        Interrupted and damaged entries are always garbage.

        Args:
            is_garbage: Whether any other entry is garbage.
            everything: Whether a damaged entry is removed even if it has just been built again.
            dry_run: Only report what would be removed.
            say: Takes a line for each entry that was removed.

        Raises:
            StoreError: The cache cannot be read or locked.
        """
        removed: builtins.list[Entry[ManifestT]] = []
        in_use: builtins.list[Entry[ManifestT]] = []
        failed: builtins.list[str] = []
        for entry in reversed(self.list()):
            broken = entry.status in (Status.INTERRUPTED, Status.DAMAGED)
            if not broken and not everything and not is_garbage(entry):
                continue
            try:
                if entry.path.parent == self._layout.drafts:
                    gone = self._remove_draft(entry.id, dry_run=dry_run)
                else:
                    damaged = entry.status is Status.DAMAGED and not everything
                    gone = self._remove(entry.id, only_damaged=damaged, dry_run=dry_run)
            except OSError as error:
                failed.append(str(error))
                continue
            if gone:
                removed.append(entry)
                say(f"removed {entry.id} ({entry.status})")
            elif entry.path.exists():
                in_use.append(entry)
        if not dry_run:
            with explained(self.root, "removing abandoned locks"):
                self._layout.remove_abandoned_locks()
        freed = sum(entry.bytes for entry in removed)
        return Collected(tuple(removed), tuple(in_use), tuple(failed), freed)


def _held(path: Path) -> bool:
    """Return whether a process holds a lock, shared or alone."""
    if not path.exists():
        return False
    free = try_lock(path, sign=False)
    if free is not None:
        free.release()
    return free is None
