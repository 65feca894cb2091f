"""The store: makes entries, lends them, lists them, verifies them, removes them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.deadline import NEVER, Deadline
from harness.store.entry import (
    MANIFEST,
    Artifacts,
    Entry,
    Manifest,
    State,
    Wanted,
    digest_inputs,
    entry_id,
)
from harness.store.layout import Layout
from harness.store.locks import Lock, lock, try_lock
from harness.store.make import Progress, make
from harness.store.space import disk_usage, explained, remove_tree

LOG_AGE: Final = 30 * 86400.0
"""Seconds after which the log of a build that left no entry is garbage."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        removed: What was removed.
        in_use: What would have been, if nobody used it.
        failed: What could not be removed, and why.
        bytes: The bytes on disk that this gave back, work folders and logs included.
    """

    removed: tuple[Entry, ...]
    in_use: tuple[Entry, ...]
    failed: tuple[str, ...]
    bytes: int


def _quiet(line: str) -> None:
    del line


class Store:
    """A cache of artifacts in a folder; many processes may share it.

    Args:
        root: The folder; made when it is first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._layout = Layout(root)

    # --- making and lending -------------------------------------------------------------------

    def artifacts(
        self, wanted: Wanted, *, progress: Progress = _quiet, deadline: Deadline = NEVER
    ) -> Artifacts:
        """Return the files of what is wanted, made first if they are not there.

        At most one process of the host makes them; the others wait and say so. What is interrupted
        never counts as made.

        Args:
            wanted: An image on an arch, in a version and variant.
            progress: Told what is done.
            deadline: When to give up, waiting for another's build included.

        Raises:
            BuildError: if the build script failed, or left out a file.
            ChecksumError: if a fetched file is another one.
            DiskFullError: if no space is left.
            StoreError: if the cache cannot be written, or a file not fetched.
            WaitTimeoutError: if the deadline passed.
        """
        key = digest_inputs(wanted)
        entry = entry_id(wanted, key)
        making, using = self._layout.make_lock(entry), self._layout.use_lock(entry)

        def building(pid: int | None) -> None:
            who = f"another process (pid {pid})" if pid else "another process"
            progress(f"{who} is building {wanted}; waiting for it")

        def busy(pid: int | None) -> None:
            progress(f"{wanted} is in use; waiting until it is not")

        with explained(self.root, f"making {wanted}"):
            self._layout.make()
            while True:
                if self._fault(entry) is None:
                    lent = self._lend(entry, lock(using, shared=True, deadline=deadline))
                    if lent is not None:
                        return lent
                with lock(making, deadline=deadline, waiting=building) as alone:
                    # Again: somebody may have made it while we waited.
                    fault = self._fault(entry)
                    if fault:
                        progress(f"{wanted} in the cache is damaged, making it anew: {fault}")
                        with lock(using, deadline=deadline, waiting=busy):
                            self._remove(self._layout.entry(entry))
                    if fault is not None:
                        make(self._layout, wanted, entry, key, alone, progress, deadline)

    def where(self, wanted: Wanted) -> Path:
        """Return the folder that the artifacts of what is wanted are in, or would be."""
        return self._layout.entry(entry_id(wanted, digest_inputs(wanted)))

    def _lend(self, entry: str, shared: Lock) -> Artifacts | None:
        """Return an entry under the lock of its users; lets go of it if the entry is not there."""
        try:
            folder = self._layout.entry(entry)
            manifest = Manifest.read(folder)
            # Looked at again: it may have been removed before the lock was ours.
            if manifest is not None and self._fault(entry) is None:
                with suppress(OSError):  # a cache that is read-only for us still serves
                    os.utime(folder / MANIFEST)
                return Artifacts(entry, folder, manifest, shared)
        except BaseException:
            shared.release()
            raise
        shared.release()
        return None

    def _fault(self, entry: str) -> str | None:
        """Return why an entry cannot be used, empty if it is not there; ``None`` if it can."""
        folder = self._layout.entry(entry)
        if not folder.exists():
            return ""
        manifest = Manifest.read(folder)
        if manifest is None:
            return f"{folder / MANIFEST} is missing or damaged"
        return "; ".join(manifest.faults(folder, contents=False)) or None

    # --- looking after ------------------------------------------------------------------------

    def list(self) -> Sequence[Entry]:
        """Return all entries, what is being made and what was interrupted; last used first."""
        with explained(self.root, "listing the cache"):
            looks = [self._look(folder, state) for state, folder in self._folders()]
        found = [entry for entry in looks if entry is not None]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def verify(
        self, *, remove: bool = False, progress: Progress = _quiet
    ) -> Mapping[str, Sequence[str]]:
        """Compare every entry with its digests, reading all of it.

        Args:
            remove: Whether to remove what is damaged and not in use.
            progress: Told what is done.

        Returns:
            What is wrong, by entry; empty if nothing is.

        Raises:
            StoreError: if the cache cannot be read or written.
        """
        damaged = {}
        with explained(self.root, "verifying the cache"):
            for state, folder in self._folders():
                if state is State.INTERRUPTED:
                    continue
                held = try_lock(self._layout.use_lock(folder.name), shared=True)
                if held is None:
                    continue  # being removed right now
                with held:
                    progress(f"verifying {folder.name}")
                    manifest = Manifest.read(folder)
                    faults = (
                        manifest.faults(folder, contents=True)
                        if manifest
                        else [f"{folder / MANIFEST} is missing or damaged"]
                    )
                if faults and folder.exists():
                    damaged[folder.name] = faults
                    if remove:
                        self._remove_unused(folder)
        return damaged

    def gc(
        self,
        *,
        keep: Iterable[Wanted] = (),
        max_age: float | None = None,
        everything: bool = False,
        dry_run: bool = False,
    ) -> Collected:
        """Remove what is not needed; never what is in use.

        What was interrupted or is damaged always goes. Of the rest, least recently used first, goes
        what ``keep`` does not name and nobody has asked for within ``max_age``.

        Args:
            keep: What to keep.
            max_age: Seconds since the last use; ``None`` removes whatever is not kept.
            everything: Remove all entries, work folders and logs, whatever ``keep`` says.
            dry_run: Only say what would be removed.

        Raises:
            StoreError: if the cache cannot be read or locked.
        """
        kept = set() if everything else {entry_id(one, digest_inputs(one)) for one in keep}
        removed: list[Entry] = []
        in_use: list[Entry] = []
        failed: list[str] = []
        with explained(self.root, "collecting garbage"):
            now = time.time()
            for entry in reversed(self.list()):
                broken = entry.state in (State.INTERRUPTED, State.DAMAGED)
                young = max_age is not None and now - entry.used < max_age
                if not broken and not everything and (entry.id in kept or young):
                    continue
                try:
                    if self._remove_unused(entry.path, dry_run=dry_run):
                        removed.append(entry)
                    elif entry.path.exists():
                        in_use.append(entry)
                except OSError as error:
                    failed.append(str(error))
            if not dry_run:
                self._layout.remove_abandoned_locks()
            freed = sum(entry.bytes for entry in removed)
            freed += self._clean_logs(now, everything=everything, dry_run=dry_run)
            if everything:
                freed += self._clean_work(failed, dry_run=dry_run)
        return Collected(tuple(removed), tuple(in_use), tuple(failed), freed)

    def _clean_logs(self, now: float, *, everything: bool, dry_run: bool) -> int:
        freed = 0
        for log in sorted(self._layout.logs.glob("*.log")):
            with suppress(FileNotFoundError):
                old = (
                    now - log.stat().st_mtime > LOG_AGE
                    and not self._layout.entry(log.stem).exists()
                )
                writing = self._layout.temporary(log.stem).exists()
                if (everything or old) and not writing:
                    freed += disk_usage(log)
                    if not dry_run:
                        log.unlink()
        return freed

    def _clean_work(self, failed: MutableSequence[str], *, dry_run: bool) -> int:
        freed = 0
        work = self._layout.works
        for folder in sorted(work.iterdir()) if work.is_dir() else []:
            alone = try_lock(self._layout.work_lock(folder.name))
            if alone is None:
                continue
            with alone:
                size = disk_usage(folder)
                try:
                    if not dry_run:
                        remove_tree(folder)
                        alone.path.unlink(missing_ok=True)
                    freed += size
                except OSError as error:
                    failed.append(str(error))
        return freed

    def _remove_unused(self, folder: Path, *, dry_run: bool = False) -> bool:
        """Remove an entry, or what was to become one, unless it is being made or used."""
        name = folder.name
        with ExitStack() as held:
            for path in (self._layout.make_lock(name), self._layout.use_lock(name)):
                alone = try_lock(path, sign=False)
                if alone is None:
                    return False
                held.enter_context(alone)
                if not dry_run:
                    held.callback(path.unlink, missing_ok=True)
            if not folder.exists():
                return False  # published or removed since it was looked at
            if not dry_run:
                self._remove(folder)
            return True

    def _remove(self, folder: Path) -> None:
        """Remove an entry, or what was to become one; for who holds its locks alone."""
        if folder.parent == self._layout.entries:
            # Out of sight by one rename: half an entry is never seen.
            temporary = self._layout.temporary(folder.name)
            remove_tree(temporary)
            folder.rename(temporary)
            folder = temporary
        remove_tree(folder)

    def _folders(self) -> Iterator[tuple[State, Path]]:
        for state, parent in (
            (State.READY, self._layout.entries),
            (State.INTERRUPTED, self._layout.temporaries),
        ):
            if parent.is_dir():
                for folder in sorted(parent.iterdir()):
                    yield state, folder

    def _look(self, folder: Path, state: State) -> Entry | None:
        manifest = Manifest.read(folder)
        try:
            used = folder.stat().st_mtime
            if manifest is not None:
                used = (folder / MANIFEST).stat().st_mtime
        except FileNotFoundError:
            return None
        if state is State.READY and self._fault(folder.name) is not None:
            state = State.DAMAGED
        if state is State.READY and self._held(self._layout.use_lock(folder.name)):
            state = State.IN_USE
        elif state is State.INTERRUPTED and self._held(self._layout.make_lock(folder.name)):
            state = State.BUILDING
        return Entry(
            id=folder.name,
            path=folder,
            state=state,
            bytes=disk_usage(folder),
            created=manifest.created if manifest else used,
            used=used,
            manifest=manifest,
        )

    @staticmethod
    def _held(path: Path) -> bool:
        free = try_lock(path, sign=False)
        if free is not None:
            free.release()
        return free is None
