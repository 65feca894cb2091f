"""Machines as a test would have them: a lab for an image, and the memory of its machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.core import Context
from harness import paths
from harness.lab import Lab
from harness.machine import Machine
from harness.progress import Progress

ACCEL: Final = "tcg"
"""The accelerator of all benchmarks: every host has it, so their numbers compare."""


def open_lab(image: str, evidence: Path, **options: Any) -> Lab:
    """Return a lab for one of Harness' own images under TCG.

    Args:
        image: The image's name.
        evidence: The folder that gets the evidence.
        options: Further arguments of :class:`~harness.lab.Lab`.
    """
    folders = [paths.bundled("images")]
    return Lab(image, images=folders, accel=ACCEL, evidence=evidence, **options)


@contextlib.contextmanager
def lab(context: Context, image: str, **options: Any) -> Iterator[Lab]:
    """Yield a lab for an image; it has the caches of the host and keeps its progress in a file."""
    with (
        (context.folder / f"progress-{image}").open("a", encoding="utf-8") as stream,
        open_lab(
            image, context.folder / "runs", progress=Progress(stream, live=False), **options
        ) as lab,
    ):
        yield lab


def private(machine: Machine[Any]) -> float:
    """Return the MB of memory that a machine's QEMU shares with no other process.

    These are the pages that it has written: ``Private_Dirty`` (``proc_pid_smaps(5)``). Pages of the
    saved RAM that the guest has only read belong to the host's page cache; they count as
    ``Private_Clean`` as long as a single fork has read them, and the host can drop them.
    """
    rollup = Path(f"/proc/{machine.pid}/smaps_rollup").read_text(encoding="ascii")
    lines = (line.split() for line in rollup.splitlines()[1:])
    return {words[0]: int(words[1]) for words in lines}["Private_Dirty:"] * 1024 / 1e6
