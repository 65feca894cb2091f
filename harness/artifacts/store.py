"""The store of artifacts: the cache, and the folders of build scripts beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from harness.artifacts.entry import MANIFEST, Artifacts, Manifest, Recipe, digest_inputs, entry_id
from harness.artifacts.layout import BuildLayout
from harness.artifacts.making import Making
from harness.cache import Cache, Collected, Entry, Say, quiet
from harness.cache.locks import Lock, try_lock
from harness.cache.space import disk_usage, explained, remove_tree
from harness.deadline import NEVER, Deadline

LOG_AGE: Final = 30 * 86400.0
"""Seconds after which the log of a build without an entry is garbage."""


class Store(Cache[Manifest, Artifacts]):
    """The artifacts of a host, in a folder that many processes share.

    Args:
        root: The folder; it is made at the first build.
    """

    MANIFEST: ClassVar[str] = MANIFEST
    _layout: BuildLayout

    def __init__(self, root: Path) -> None:
        super().__init__(BuildLayout(root))

    def _read(self, folder: Path) -> Manifest | None:
        return Manifest.read(folder)

    def _faults(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        return manifest.faults(folder, contents=False)

    def _lease(self, entry: str, manifest: Manifest, locks: ExitStack) -> Artifacts:
        return Artifacts(entry, self._layout.entry(entry), manifest, locks)

    def artifacts(
        self, recipe: Recipe, *, say: Say = quiet, deadline: Deadline = NEVER
    ) -> Artifacts:
        """Return the files of a recipe, built or fetched first if they are not in the cache.

        At most one process of the host builds them; the others wait and say so. An interrupted build
        never counts.

        Args:
            recipe: An image for one architecture, version and variant.
            say: Takes lines of progress.
            deadline: The end of the build, or of waiting for the build of another process.

        Raises:
            BuildError: The build script failed, or left out a file.
            ChecksumError: A fetched file has another checksum.
            DiskFullError: No space is left.
            StoreError: The cache cannot be written, or a file cannot be fetched.
            WaitTimeoutError: The deadline passed.
        """
        key = digest_inputs(recipe)
        entry = entry_id(recipe, key)
        making = Making(self._layout, recipe, entry, key, say, deadline)

        def build(folder: Path, lock: Lock) -> None:
            with explained(self.root, f"making {recipe}"):
                making(folder, lock)

        return self._obtain(entry, str(recipe), build, say=say, deadline=deadline)

    def where(self, recipe: Recipe) -> Path:
        """Return the folder of a recipe's artifacts; it may not exist yet."""
        return self._layout.entry(entry_id(recipe, digest_inputs(recipe)))

    def verify(self, *, remove: bool = False, say: Say = quiet) -> Mapping[str, Sequence[str]]:
        """Compare every entry with its checksums, which reads all of it.

        Args:
            remove: Whether to remove damaged entries that are not in use.
            say: Takes lines of progress.

        Returns:
            The faults of each damaged entry.

        Raises:
            StoreError: The cache cannot be read or written.
        """
        damaged = {}
        with explained(self.root, "verifying the cache"):
            for folder in self._layout.folders():
                if folder.parent == self._layout.drafts:
                    continue
                using = try_lock(self._layout.use_lock(folder.name), shared=True)
                if using is None:
                    continue  # another process is removing it
                with using:
                    say(f"verifying {folder.name}")
                    manifest = Manifest.read(folder)
                    faults = (
                        manifest.faults(folder, contents=True)
                        if manifest
                        else [f"{folder / MANIFEST} is missing or damaged"]
                    )
                if faults and folder.exists():
                    damaged[folder.name] = faults
                    if remove:
                        self._remove(folder.name)
        return damaged

    def gc(
        self,
        *,
        keep: Iterable[Recipe] = (),
        max_age: float | None = None,
        everything: bool = False,
        dry_run: bool = False,
    ) -> Collected[Manifest]:
        """Remove entries that are not needed; never one that is in use.

        Interrupted and damaged entries always go. Of the others, those go that ``keep`` does not name
        and that were not used within ``max_age``; the least recently used one first.

        Args:
            keep: The recipes whose entries stay.
            max_age: Seconds since the last use; ``None`` removes every entry that is not kept.
            everything: Remove all entries, work folders and logs, whatever ``keep`` says.
            dry_run: Only report what would be removed.

        Returns:
            The report; its bytes include work folders and logs.

        Raises:
            StoreError: The cache cannot be read or locked.
        """
        kept = set() if everything else {entry_id(recipe, digest_inputs(recipe)) for recipe in keep}
        now = time.time()

        def is_garbage(entry: Entry[Manifest]) -> bool:
            young = max_age is not None and now - entry.used < max_age
            return entry.id not in kept and not young

        collected = self._collect(is_garbage, everything=everything, dry_run=dry_run)
        failed = list(collected.failed)
        with explained(self.root, "removing logs and work folders"):
            freed = self._remove_logs(now, everything=everything, dry_run=dry_run)
            if everything:
                freed += self._remove_work(failed, dry_run=dry_run)
        return replace(collected, failed=tuple(failed), bytes=collected.bytes + freed)

    def _remove_logs(self, now: float, *, everything: bool, dry_run: bool) -> int:
        freed = 0
        for log in sorted(self._layout.logs.glob("*.log")):
            with suppress(FileNotFoundError):
                old = (
                    now - log.stat().st_mtime > LOG_AGE
                    and not self._layout.entry(log.stem).exists()
                )
                building = self._layout.draft(log.stem).exists()
                if (everything or old) and not building:
                    freed += disk_usage(log)
                    if not dry_run:
                        log.unlink()
        return freed

    def _remove_work(self, failed: MutableSequence[str], *, dry_run: bool) -> int:
        freed = 0
        works = self._layout.works
        for folder in sorted(works.iterdir()) if works.is_dir() else []:
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
