"""Makes an entry: fetches and builds in a folder of its own, then publishes it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildError, StoreError
from harness.spec import format_size
from harness.store.build import run_script
from harness.store.entry import File, Manifest, Wanted
from harness.store.fetch import fetch
from harness.store.layout import Layout
from harness.store.locks import Lock, lock
from harness.store.space import disk_usage, remove_tree, sync

Progress = Callable[[str], None]
"""Told what is done, in plain lines, when it begins and when it ends."""


def make(
    layout: Layout,
    wanted: Wanted,
    entry: str,
    key: str,
    alone: Lock,
    progress: Progress,
    deadline: Deadline,
) -> None:
    """Make an entry that is not there; for who holds the lock of its making.

    It is made in a folder of its own and published by one rename, so that half an entry is never
    seen.

    Args:
        layout: Where the cache is.
        wanted: What to make.
        entry: The entry's name.
        key: The digest of its inputs.
        alone: That lock; a build keeps it until all of it has ended.
        progress: Told what is done.
        deadline: When to give up.

    Raises:
        BuildError: if the build script failed, or left out a file.
        ChecksumError: if a fetched file is another one.
        StoreError: if a file cannot be fetched.
        WaitTimeoutError: if the deadline passed.
        OSError: if the cache cannot be written.
    """
    temporary = layout.temporary(entry)
    remove_tree(temporary)  # of a build that was killed
    made, out = temporary / "made", temporary / "out"
    started = time.monotonic()
    try:
        made.mkdir(parents=True)
        out.mkdir()
        draft = Manifest(
            name=wanted.name,
            arch=wanted.arch,
            version=wanted.version,
            variant=wanted.variant,
            key=key,
            created=time.time(),
            seconds=0.0,
            artifacts={},
        )
        draft.write(temporary)
        for source in wanted.artifacts.values():
            if source.url is not None and source.sha256 is not None:
                target = made / source.file
                target.parent.mkdir(parents=True, exist_ok=True)
                fetch(source.url, target, source.sha256, progress=progress)
        if any(source.url is None for source in wanted.artifacts.values()):
            _build(layout, wanted, entry, out, alone, progress, deadline)
            _gather(layout, wanted, entry, out, made)
        files = {name: _seal(made, source.file) for name, source in wanted.artifacts.items()}
        seconds = time.monotonic() - started
        whole = replace(draft, created=time.time(), seconds=round(seconds, 1), artifacts=files)
        whole.write(made)
        sync(made)
        made.rename(layout.entry(entry))
        sync(layout.entries)
    finally:
        # An error here would hide the one that matters; the next build removes it.
        with suppress(OSError):
            remove_tree(temporary)
    size = format_size(disk_usage(layout.entry(entry)))
    progress(f"{wanted} is ready: {size} in {seconds:.0f} s")


def _build(
    layout: Layout,
    wanted: Wanted,
    entry: str,
    out: Path,
    alone: Lock,
    progress: Progress,
    deadline: Deadline,
) -> None:
    script = wanted.script
    if script is None:
        raise StoreError(f"{wanted} has neither a build script nor addresses for all its files")
    work = layout.work(wanted.name)
    log = layout.log(entry)

    def waiting(pid: int | None) -> None:
        who = f"another process (pid {pid})" if pid else "another process"
        progress(f"{who} is building {wanted.name} too, as another version or arch; waiting")

    # The work folder is one script's at a time. Taken after the entry's lock, always: whoever
    # holds the work folder waits for nobody.
    with lock(layout.work_lock(wanted.name), deadline=deadline, waiting=waiting) as busy:
        work.mkdir(parents=True, exist_ok=True)
        progress(f"building {wanted}; its log: {log}")
        run_script(
            [
                str(script.absolute()),
                *("--arch", wanted.arch),
                *("--version", wanted.version),
                *("--variant", wanted.variant),
                *("--out", str(out.absolute())),
                *("--work", str(work.absolute())),
            ],
            cwd=wanted.folder,
            log=log,
            name=str(wanted),
            deadline=deadline,
            hold=(alone.fd, busy.fd),
        )


def _gather(layout: Layout, wanted: Wanted, entry: str, out: Path, made: Path) -> None:
    """Move what the script made into the entry; what nobody declared stays behind."""
    for name, source in wanted.artifacts.items():
        if source.url is not None:
            continue
        file = out / source.file
        if file.is_symlink() or not file.is_file() or not file.stat().st_size:
            left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
            raise BuildError(
                f"the build of {wanted} ended well and left no file {source.file!r}"
                f" for the artifact {name!r}",
                evidence=f"{layout.log(entry)}\nfiles in --out: {', '.join(left) or 'none'}",
                hint="make the script and the artifacts in image.yaml agree",
            )
        (made / source.file).parent.mkdir(parents=True, exist_ok=True)
        file.rename(made / source.file)


def _seal(folder: Path, name: str) -> File:
    """Make a file read-only, and safe from a power cut; return what a manifest says of it."""
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    with suppress(PermissionError):  # some file systems keep no modes
        path.chmod(0o444)
    return File(name, digest, size)
