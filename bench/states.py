"""Machines from states for benchmarks: what the fixtures do, without pytest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.core import Context
from fixtures.machines import Boot
from fixtures.session import Session
from fixtures.states import ForkOf, States
from harness import paths
from harness.evidence.run import Run
from harness.evidence.timeline import Timeline
from harness.machine import Machine
from harness.progress import Progress

ACCEL = "tcg"
"""So that hosts with and without KVM compare."""


class Stage:
    """A session without tests: machines by :attr:`boot`, forks by :attr:`fork_of`.

    Attributes:
        states: The states of the image.
        boot: Starts machines; they end with the stage.
        fork_of: Starts forks of states; they end with the stage.
    """

    def __init__(self, session: Session, folder: Path, stack: contextlib.ExitStack) -> None:
        self.states = States(session)
        timeline = Timeline(folder / "timeline.json", "bench")
        self.boot = Boot(session, folder, timeline, stack)
        self.fork_of = ForkOf(self.states, self.boot, fresh=False)


@contextlib.contextmanager
def stage(context: Context, image: str) -> Iterator[Stage]:
    """Yield a stage for an image; the cache of states is the host's own."""
    with (context.folder / "progress").open("a", encoding="utf-8") as stream:
        session = Session(
            image=image,
            arch=None,
            accel=ACCEL,
            keep=False,
            timeout_scale=1.0,
            progress=Progress(stream, live=False),
            stream=stream,
            roots=paths.catalog_dirs(),
        )
        session.start(Run.create(context.folder / "runs"))
        try:
            with contextlib.ExitStack() as stack:
                yield Stage(session, session.run.folder(f"bench-{image}"), stack)
        finally:
            session.progress.close()
            session.run.close()


def private(machine: Machine) -> float:
    """Return the MB of memory that a machine's QEMU shares with nobody.

    Pages of the saved RAM that the guest has only read are the host's page cache, and counted as
    shared as soon as a sibling has read them; ``Private_Clean`` of a lone fork is that cache, which the
    host can drop. So it is the pages it has written (``Private_Dirty``, ``proc_pid_smaps(5)``).
    """
    rollup = Path(f"/proc/{machine.pid}/smaps_rollup").read_text(encoding="ascii")
    lines = (line.split() for line in rollup.splitlines()[1:])
    return {words[0]: int(words[1]) for words in lines}["Private_Dirty:"] * 1024 / 1e6
