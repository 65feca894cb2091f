"""A process to be killed: forks a saved machine, and saves that fork where it is told to."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import deadline
from harness.keys import KeyPair
from harness.machine import Machine
from harness.qemu.accel import Accel
from harness.state import Snapshot, StateCache


def main(action: str, saved: Path, evidence: Path, root: Path) -> None:
    deadline.set_scale(8.0)
    origin = Snapshot.read(saved)

    def machine() -> Machine:
        return Machine(
            origin.fork_spec("victim"),
            accel=lambda _: Accel("tcg", ""),
            key=KeyPair(origin.private_key, origin.public_key),
            evidence=evidence,
            origin=origin,
            saveable=action == "save",
        )

    def build(folder: Path) -> Snapshot:
        with machine() as victim:
            print("now", victim.pid, flush=True)
            return victim.save(folder, final=True, inside=saved.parent)

    if action == "save":
        StateCache(root).lease("victim", {"x": "1"}, "victim" * 8, build)
    else:
        print("now", flush=True)
        with machine() as victim:
            victim.console.run("echo alive")
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
