"""Programs that stress admission, each in a process of its own with one thread, because they fork.

``storm ROOT SEED KILLS``: processes request machines of all sizes, release them at once and request
again, while they are killed one after another. Each process reports its grants to a ledger after it
got them, and before it releases them; the ledger shows that nothing is ever granted twice.

``sweep ROOT waiting|granted``: kills a process at each system call of an admission in turn, and checks
that the whole host can be granted again at once.

The ledger is one pipe, so that the reports have an order. Both programs print their results as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.deadline import UNSCALED
from harness.errors import HostError
from harness.host.admission import Admission, Need
from harness.host.capacity import Capacity
from harness.spec import GIB

ROOM = Capacity(cpus=2.0, memory=16 * GIB, available=16 * GIB, limit="host", cpu_limit="host")
WORKERS = 8
LINE = 32
PR_SET_PDEATHSIG = 1  # linux/prctl.h

STEPS = (
    (os, ("open", "close", "read", "pwrite", "ftruncate", "mkfifo", "unlink", "rename", "mkdir")),
    (fcntl, ("flock",)),
)


def spawn(run: Callable[[], None]) -> int:
    """Fork a child that only runs a function, and that ends with this process."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        assert os.getppid() == parent
        run()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def storm(root: Path, seed: int, kills: int) -> dict[str, Any]:
    reading, writing = os.pipe()
    chance = random.Random(seed)

    def worker(seed: int) -> None:
        mine = random.Random(seed)
        admission = Admission(root, ROOM)

        def report(word: str, cpus: float, memory: int) -> None:
            line = f"{os.getpid()} {word} {round(cpus * 1000)} {memory >> 20}"
            os.write(writing, line.ljust(LINE - 1).encode() + b"\n")

        while True:
            size = mine.choice((1, 2, 2, 4, 8, 15)) * GIB
            if mine.random() < 0.2:
                needs = [Need(f"m-{n}", 2, size // 3) for n in range(3)]
            else:
                needs = [Need("m", mine.choice((0.5, 1, 2, 8)), size)]
            grants = admission.admit_together(needs)
            total = sum(grant.cpus for grant in grants), sum(grant.memory for grant in grants)
            report("got", *total)
            if mine.random() < 0.3:
                # A second machine beside the first; it may be refused but must not hang.
                try:
                    more = admission.admit("more", memory=mine.choice((1, 4)) * GIB)
                    report("got", more.cpus, more.memory)
                    report("gave", more.cpus, more.memory)
                    more.release()
                except HostError:
                    report("none", 0, 0)
            report("gave", *total)
            for grant in grants:
                grant.release()

    alive: set[int] = set()
    held: dict[int, list[tuple[int, int]]] = {}
    counts = {"grants": 0, "kills": 0, "refusals": 0, "most": 0, "over": 0}
    limits = Admission(root, ROOM).limits

    def start() -> None:
        number = chance.randrange(1 << 30)
        child = spawn(lambda: worker(number))
        alive.add(child)
        held[child] = []

    for _ in range(WORKERS):
        start()
    next_kill = chance.randrange(1, 30)
    while counts["kills"] < kills:
        pid, word, millis, mebibytes = os.read(reading, LINE).split()
        process, grant = int(pid), (int(millis), int(mebibytes))
        if process not in alive:
            continue  # killed after its report
        if word == b"got":
            held[process].append(grant)
            counts["grants"] += 1
            cpus = sum(millis for grants in held.values() for millis, _ in grants)
            memory = sum(size for grants in held.values() for _, size in grants)
            counts["most"] = max(counts["most"], memory)
            if memory > limits.memory >> 20 or cpus > round(limits.cpus * 1000):
                counts["over"] += 1
        elif word == b"gave":
            held[process].remove(grant)
        else:
            counts["refusals"] += 1
        next_kill -= 1
        if next_kill <= 0:
            victim = chance.choice(sorted(alive))
            # It may end at any time from here on, so the ledger no longer counts it.
            alive.remove(victim)
            del held[victim]
            os.kill(victim, signal.SIGKILL)
            assert os.waitpid(victim, 0)[1] == signal.SIGKILL, "a worker ended by itself"
            counts["kills"] += 1
            next_kill = chance.randrange(1, 30)
            start()
    for victim in alive:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    return counts | whole(root)


def sweep(root: Path, *, waiting: bool) -> dict[str, Any]:
    admission = Admission(root, ROOM)
    held = admission.admit("held", memory=10 * GIB) if waiting else None
    kills = 0

    def victim(moment: int) -> None:
        with killed_at(moment):
            grant = Admission(root, ROOM).admit(
                "victim", memory=10 * GIB, progress=lambda reason: os._exit(0)
            )
            grant.release()

    for moment in range(1, 1000):
        child = spawn(lambda moment=moment: victim(moment))  # type: ignore[misc]
        ended = os.waitpid(child, 0)[1]
        free = 5 if held else 15
        admission.admit("all", cpus=0, memory=free * GIB, deadline=UNSCALED.after(20)).release()
        if ended == 0:
            break
        assert ended == signal.SIGKILL
        kills += 1
    if held:
        held.release()
    return {"kills": kills} | whole(root)


@contextlib.contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """Kill this process before the system call with that number."""
    left = moment

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for module, names in STEPS:
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    yield


def whole(root: Path) -> dict[str, Any]:
    """Return the remaining claims and files, after the whole host was granted once more."""
    limit = UNSCALED.after(20)
    Admission(root, ROOM).admit("all", memory=15 * GIB, deadline=limit).release()
    now = Admission(root, ROOM).status(limit)
    return {
        "granted": len(now.granted),
        "waiting": len(now.waiting),
        "files": sorted(
            str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()
        ),
    }


def main(program: str, root: str, *rest: str) -> None:
    signal.alarm(120)  # a lost wake-up must end the test
    if program == "storm":
        result = storm(Path(root), int(rest[0]), int(rest[1]))
    else:
        result = sweep(Path(root), waiting=rest[0] == "waiting")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
