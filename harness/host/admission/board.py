"""The board: all grants and requests of a host, visible to all processes.

Each claim is a named pipe (``fifo(7)``) whose file name describes it. A claim is alive while a process
has the pipe open for writing; the kernel closes it with that process, ``kill -9`` included. A waiting
process has the pipe open for reading, and ``poll(2)`` reports the hang-up whether it happens before or
during the wait: nothing polls, and no wake-up is lost. A child that inherits the writing end keeps the
claim alive.

Processes read and change the board under one short ``flock(2)``, the gate. Releasing a claim needs no
gate: its file stays, dead, until the next reader of the board removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import secrets
import select
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import HostError, WaitTimeoutError
from harness.spec import format_size

_LONGEST_NAME: Final = 120  # a file name has 255 bytes
_ODD: Final = re.compile(r"[^\w.,:@ -]", re.ASCII)
_LONGEST_POLL: Final = 86400.0  # poll(2) takes milliseconds in an int


@dataclass(frozen=True, slots=True)
class Claim:
    """A grant, or a request for one.

    Attributes:
        number: The number of the request; a grant keeps it.
        turn: For requests, 0 if they are served first, because their process holds a grant, and 1 for
            others. For grants, the position among those of the same request.
        owner: A name that is unique to the process.
        pid: The process id, in the process' own namespace.
        cpus: CPUs.
        memory: Bytes.
        name: The machine's name, or several names separated by commas.
    """

    number: int
    turn: int
    owner: str
    pid: int
    cpus: float
    memory: int
    name: str

    @classmethod
    def parse(cls, file: str) -> Claim | None:
        """Return the claim that a file name describes; ``None`` if it describes none."""
        try:
            number, turn, owner, pid, millis, memory, name = file.split("+")
            return cls(
                number=int(number),
                turn=int(turn),
                owner=owner,
                pid=int(pid),
                cpus=int(millis) / 1000,
                memory=int(memory),
                name=name,
            )
        except ValueError:
            return None

    @property
    def file(self) -> str:
        """The file name that describes the claim, with odd characters in the name replaced."""
        name = _ODD.sub("_", self.name)[:_LONGEST_NAME]
        words = (self.number, self.turn, self.owner, self.pid, milli(self.cpus), self.memory, name)
        return "+".join(map(str, words))

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}, {format_size(self.memory)})"


@dataclass(frozen=True, slots=True)
class Occupancy:
    """All grants, and all requests in the order in which they will be served."""

    granted: tuple[Claim, ...]
    waiting: tuple[Claim, ...]

    @property
    def cpus(self) -> float:
        """Virtual CPUs granted."""
        return sum(milli(claim.cpus) for claim in self.granted) / 1000

    @property
    def memory(self) -> int:
        """Bytes granted."""
        return sum(claim.memory for claim in self.granted)

    def held(self, owner: str) -> list[Claim]:
        """Return the grants of one process."""
        return [claim for claim in self.granted if claim.owner == owner]

    def with_request(self, request: Claim) -> Occupancy:
        """Return the occupancy with one more request."""
        return Occupancy(self.granted, tuple(sorted((*self.waiting, request), key=place)))

    def without_request(self, request: Claim) -> Occupancy:
        """Return the occupancy without a request."""
        return Occupancy(
            self.granted,
            tuple(claim for claim in self.waiting if claim.number != request.number),
        )


def place(request: Claim) -> tuple[int, int]:
    """Return a request's place in line; smaller places are served earlier."""
    return request.turn, request.number


def milli(cpus: float) -> int:
    """Return thousandths of CPUs, because sums of fractions would not be exact."""
    return round(cpus * 1000)


class Board:
    """The board in a folder.

    Args:
        root: The folder; created on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests = root / "requests"
        self.grants = root / "grants"

    @contextlib.contextmanager
    def gate(self, deadline: Deadline) -> Iterator[None]:
        """Keep all other processes and threads from the board while the block runs.

        Raises:
            HostError: The folder cannot be used.
            WaitTimeoutError: The deadline passed; the process with the gate has probably been stopped.
        """
        path = self.root / "gate"
        with self._usable():
            self.requests.mkdir(parents=True, exist_ok=True)
            self.grants.mkdir(exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with self._usable():
                held = _lock(fd, deadline)
            if not held:
                pid = os.pread(fd, 32, 0).decode(errors="replace") or "unknown"
                raise WaitTimeoutError(
                    f"the gate of admission, held by process {pid}",
                    deadline,
                    evidence=str(path),
                    hint="a process holds it only for an instant: check whether that process is stopped",
                )
            # The pid is only information: a full disk must not block admission.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d" % os.getpid(), 0)
            try:
                with self._usable():
                    yield
            finally:
                # Closing is not enough: a fork by another thread may hold a copy for a moment.
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HostError(
                f"the folder of admission cannot be used: {error.strerror or error}",
                evidence=str(error.filename or self.root),
                hint="HARNESS_CACHE must be a writable folder with free space, on a local file system",
            ) from error

    def look(self) -> Occupancy:
        """Return the live claims and remove the dead ones; the caller holds the gate."""
        granted, waiting = _sweep(self.grants), _sweep(self.requests)
        return Occupancy(tuple(sorted(granted, key=place)), tuple(sorted(waiting, key=place)))

    @staticmethod
    def publish(folder: Path, claim: Claim) -> int:
        """Create a claim and return the descriptor that keeps it alive; the caller holds the gate."""
        path = folder / claim.file
        os.mkfifo(path)
        try:
            # O_RDWR, because O_WRONLY fails on a pipe without a reader: fifo(7).
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def promote(self, request: Claim) -> Claim:
        """Move a request before those of processes without grants; the caller holds the gate."""
        promoted = replace(request, turn=0)
        (self.requests / request.file).rename(self.requests / promoted.file)
        return promoted


def _sweep(folder: Path) -> list[Claim]:
    claims = []
    for path in folder.iterdir():
        claim = Claim.parse(path.name)
        if claim is None:
            continue
        fd = watch(path)
        if fd is None:
            path.unlink(missing_ok=True)
        else:
            os.close(fd)
            claims.append(claim)
    return claims


def watch(path: Path) -> int | None:
    """Return a descriptor that hangs up when a claim dies; ``None`` if it is dead.

    A pipe without a writer reads as ended, one with a writer as empty: ``pipe(7)``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        os.read(fd, 1)
    except BlockingIOError:
        return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def hung_up(fds: Sequence[int], deadline: Deadline) -> bool:
    """Wait until a claim dies; return whether one died before the deadline."""
    waiter = select.poll()
    for fd in fds:
        waiter.register(fd, 0)  # poll always reports a hang-up
    while True:
        if waiter.poll(math.ceil(min(deadline.remaining(), _LONGEST_POLL) * 1000)):
            return True
        if deadline.expired:
            return False


def _lock(fd: int, deadline: Deadline) -> bool:
    """Lock a file; return whether the lock was acquired before the deadline.

    ``flock(2)`` takes no timeout, so a thread blocks in it, on a duplicate of the descriptor. Both share
    the lock. The kernel releases it when both are closed, even if it was acquired after the first was.
    """
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    duplicate = os.dup(fd)
    done = threading.Event()
    failure: list[OSError] = []

    def take() -> None:
        try:
            fcntl.flock(duplicate, fcntl.LOCK_EX)
        except OSError as error:
            failure.append(error)
        finally:
            os.close(duplicate)
            done.set()

    threading.Thread(target=take, name="harness-admission", daemon=True).start()
    in_time = deadline.wait(done.wait)
    if failure:
        raise failure[0]
    return in_time


_this_process = (0, "")


def owner() -> str:
    """Return a unique name of this process; ids repeat, in other namespaces and over time."""
    global _this_process
    if _this_process[0] != os.getpid():
        _this_process = (os.getpid(), secrets.token_hex(6))
    return _this_process[1]
