"""Builds an entry of the cache of artifacts: fetches its files and runs its build script."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.artifacts.build import run_script
from harness.artifacts.entry import DESCRIPTION, UNKNOWN, File, Manifest, Recipe
from harness.artifacts.fetch import fetch
from harness.artifacts.layout import BuildLayout
from harness.cache import Say
from harness.cache.locks import Lock, lock
from harness.deadline import Deadline
from harness.errors import BuildError, StoreError, UsageError
from harness.qemu import image_format, target

BOOT_DISK: Final = "live"
"""The name of the artifact that machines boot from."""

KERNEL: Final = "kernel"
"""The name of the artifact that QEMU starts directly."""

UPDATE: Final = "update"
"""The name of the artifact with the files of an update server, a tar."""


@dataclass(frozen=True, slots=True)
class Making:
    """The build of one entry.

    Attributes:
        layout: The folders of the cache.
        recipe: The artifacts to build.
        entry: The name of the entry's folder.
        key: The digest of the recipe's inputs.
        say: Takes lines of progress.
        deadline: The end of the build.
    """

    layout: BuildLayout
    recipe: Recipe
    entry: str
    key: str
    say: Say
    deadline: Deadline

    def __call__(self, folder: Path, making: Lock) -> None:
        """Build the entry in a folder that does not exist yet.

        Args:
            folder: The folder; the files of the build script go beside it first.
            making: The lock of the entry's builder; the build script inherits it, so that the next
                build waits until all processes of this one have ended.

        Raises:
            BuildError: The build script failed, or left out a file.
            ChecksumError: A fetched file has another checksum.
            UsageError: A disk is not of the format that image.yaml declares, or a file that machines
                start is made for another architecture.
            StoreError: A file cannot be fetched.
            WaitTimeoutError: The deadline passed.
            OSError: The cache cannot be written.
        """
        recipe = self.recipe
        started = time.monotonic()
        folder.mkdir()
        for source in recipe.artifacts.values():
            if source.url is None:
                continue
            if (digest := source.sha512 or source.sha256) is None or digest == UNKNOWN:
                raise UsageError(
                    f"no checksum of {source.url} is known, so it is not fetched: `sha256` of"
                    f" {source.file} is {digest} in {recipe.folder / DESCRIPTION}",
                    hint="put the digest of the file you trust there: its publisher's, which you have"
                    " verified, or the output of sha256sum",
                )
            target = folder / source.file
            target.parent.mkdir(parents=True, exist_ok=True)
            fetch(source.url, target, digest, say=self.say)
        if any(source.url is None for source in recipe.artifacts.values()):
            output = folder.with_name("out")
            output.mkdir()
            self._run_script(output, making)
            self._gather(output, folder)
        self._check_contents(folder)
        Manifest(
            name=recipe.name,
            arch=recipe.arch,
            version=recipe.version,
            variant=recipe.variant,
            key=self.key,
            created=time.time(),
            seconds=round(time.monotonic() - started, 1),
            artifacts={
                name: _seal(folder, source.file) for name, source in recipe.artifacts.items()
            },
        ).write(folder)

    def _run_script(self, output: Path, making: Lock) -> None:
        recipe = self.recipe
        script = recipe.script
        if script is None:
            raise StoreError(f"{recipe} has neither a build script nor URLs for all its files")
        work = self.layout.work(recipe.name)
        log = self.layout.log(self.entry)

        def waiting(pid: int | None) -> None:
            process = f"another process (pid {pid})" if pid else "another process"
            self.say(
                f"{process} is building {recipe.name} too, as another version or arch; waiting"
            )

        # One script at a time uses the work folder. Its lock is always taken after the entry's, so a
        # process that holds it waits for no other.
        with lock(
            self.layout.work_lock(recipe.name), deadline=self.deadline, waiting=waiting
        ) as working:
            work.mkdir(parents=True, exist_ok=True)
            self.say(f"building {recipe}; its log: {log}")
            run_script(
                [
                    str(script.absolute()),
                    *("--arch", recipe.arch),
                    *("--version", recipe.version),
                    *("--variant", recipe.variant),
                    *("--out", str(output.absolute())),
                    *("--work", str(work.absolute())),
                ],
                cwd=recipe.folder,
                log=log,
                name=str(recipe),
                deadline=self.deadline,
                hold=(making.fd, working.fd),
            )

    def _gather(self, output: Path, folder: Path) -> None:
        """Move the script's files into the entry; files that no artifact declares stay behind."""
        files = sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())
        for name, source in self.recipe.artifacts.items():
            if source.url is not None:
                continue
            file = output / source.file
            if file.is_symlink() or not file.is_file() or not file.stat().st_size:
                raise BuildError(
                    f"the build of {self.recipe} succeeded and left no file {source.file!r}"
                    f" for the artifact {name!r}",
                    evidence=f"{self.layout.log(self.entry)}\n"
                    f"files in --out: {', '.join(files) or 'none'}",
                    hint="make the script and the artifacts in image.yaml agree",
                )
            (folder / source.file).parent.mkdir(parents=True, exist_ok=True)
            file.rename(folder / source.file)

    def _check_contents(self, folder: Path) -> None:
        """Refuse a file that is not what the recipe says, before a guest is blamed for it."""
        arch = self.recipe.arch
        for name, source in self.recipe.artifacts.items():
            path = folder / source.file
            what = f"the artifact {name!r} of {self.recipe}"
            if source.url is not None:
                what += f", fetched from {source.url}"
            # Only disks have a format, and only "live" is a disk by its name: a raw artifact may be a
            # compressed initrd, or a file for a test.
            if name == BOOT_DISK or source.format != "raw":
                image_format.check(path, source.format, what, boots=True)
            what = f"{source.file}, {what},"
            if name == BOOT_DISK:
                target.check_disk(path, source.format, arch, what)
            elif name == KERNEL:
                target.check_kernel(path, arch, what)
            elif name == UPDATE:
                target.check_archive(path, arch, what)


def _seal(folder: Path, name: str) -> File:
    """Make a file read-only; return its line of the manifest."""
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(PermissionError):  # some file systems have no modes
        path.chmod(0o444)
    return File(name, digest, path.stat().st_size)
