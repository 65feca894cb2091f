"""The board: what is granted on a host and what is asked for, for all processes to see.

Each entry is a named pipe (``fifo(7)``); its file name says what it stands for. It is alive while
somebody has it open for writing: the kernel closes it with its process, ``kill -9`` included. Who
waits has it open for reading, and ``poll(2)`` reports the hang-up, be it before the wait or in it:
nothing polls, and no wake-up is lost. A child that inherits the writing end keeps the entry alive.

The board is read and changed under one short ``flock(2)``, the gate. An entry is let go without it:
the file stays, dead, until the next who looks removes it.
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
class Entry:
    """What somebody was granted, or asks for.

    Attributes:
        number: Counts the requests; a grant has its request's.
        turn: Of requests: 0 for those served first, since they hold a grant already, 1 for others.
            Of grants: tells those apart that were made together.
        owner: A name for the process that no other process has.
        pid: The process id, in its own namespace.
        cpus: Virtual CPUs.
        memory: Bytes.
        name: The machine's name; several with commas between.
    """

    number: int
    turn: int
    owner: str
    pid: int
    cpus: float
    memory: int
    name: str

    @classmethod
    def parse(cls, file: str) -> Entry | None:
        """Return what a file name says; ``None`` if it is not an entry's."""
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
        """The file name that says all this, the name without odd characters."""
        name = _ODD.sub("_", self.name)[:_LONGEST_NAME]
        words = (self.number, self.turn, self.owner, self.pid, milli(self.cpus), self.memory, name)
        return "+".join(map(str, words))

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}, {format_size(self.memory)})"


@dataclass(frozen=True, slots=True)
class Status:
    """Who has what, and who waits, in the order in which they will be served."""

    granted: tuple[Entry, ...]
    waiting: tuple[Entry, ...]

    @property
    def cpus(self) -> float:
        """Virtual CPUs granted."""
        return sum(milli(entry.cpus) for entry in self.granted) / 1000

    @property
    def memory(self) -> int:
        """Bytes granted."""
        return sum(entry.memory for entry in self.granted)

    def held(self, owner: str) -> list[Entry]:
        """Return the grants of one process."""
        return [entry for entry in self.granted if entry.owner == owner]

    def asking(self, request: Entry) -> Status:
        """Return the same with one more request."""
        return Status(self.granted, tuple(sorted((*self.waiting, request), key=place)))

    def without(self, request: Entry) -> Status:
        """Return the same without a request."""
        return Status(
            self.granted, tuple(one for one in self.waiting if one.number != request.number)
        )


def place(request: Entry) -> tuple[int, int]:
    """Return a request's place in line; smaller is served earlier."""
    return request.turn, request.number


def milli(cpus: float) -> int:
    """Return thousandths of CPUs: sums of fractions would not be exact."""
    return round(cpus * 1000)


class Board:
    """The board in a folder.

    Args:
        root: The folder; made when it is first used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests = root / "requests"
        self.grants = root / "grants"

    @contextlib.contextmanager
    def gate(self, deadline: Deadline) -> Iterator[None]:
        """Keep everybody else from the board while the block runs.

        Raises:
            HostError: if the folder cannot be used.
            WaitTimeoutError: at the deadline; somebody who has the gate must have been stopped.
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
                    f"the gate of admission, which process {pid} has",
                    deadline.seconds,
                    evidence=str(path),
                    hint="it is held for an instant only: see whether that process is stopped",
                )
            # Nothing hangs on the note: a full disk must not keep anybody out.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d" % os.getpid(), 0)
            try:
                with self._usable():
                    yield
            finally:
                # Closing would not do where a fork by another thread has a copy for a moment.
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
                hint="HARNESS_CACHE must be on a local file system, with room and leave to write",
            ) from error

    def look(self) -> Status:
        """Return what is alive and remove what is dead; under the gate."""
        granted, waiting = _sweep(self.grants), _sweep(self.requests)
        return Status(tuple(sorted(granted, key=place)), tuple(sorted(waiting, key=place)))

    @staticmethod
    def publish(folder: Path, entry: Entry) -> int:
        """Make an entry and return the descriptor that keeps it alive; under the gate."""
        path = folder / entry.file
        os.mkfifo(path)
        try:
            # For both ways: one without a reader cannot be opened for writing alone, fifo(7).
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def promote(self, request: Entry) -> Entry:
        """Give a request a turn before those who hold nothing; under the gate."""
        promoted = replace(request, turn=0)
        (self.requests / request.file).rename(self.requests / promoted.file)
        return promoted


def _sweep(folder: Path) -> list[Entry]:
    entries = []
    for path in folder.iterdir():
        entry = Entry.parse(path.name)
        if entry is None:
            continue
        fd = watch(path)
        if fd is None:
            path.unlink(missing_ok=True)
        else:
            os.close(fd)
            entries.append(entry)
    return entries


def watch(path: Path) -> int | None:
    """Return a descriptor that hangs up when an entry dies; ``None`` if it is dead.

    A pipe that nobody has open for writing reads as ended, another as empty: ``pipe(7)``.
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
    """Wait until an entry dies; return whether one did before the deadline."""
    waiter = select.poll()
    for fd in fds:
        waiter.register(fd, 0)  # a hang-up is reported unasked
    while True:
        if waiter.poll(math.ceil(min(deadline.remaining(), _LONGEST_POLL) * 1000)):
            return True
        if deadline.expired:
            return False


def _lock(fd: int, deadline: Deadline) -> bool:
    """Lock a file; return whether it was to be had before the deadline.

    ``flock(2)`` takes no timeout, so a thread waits in it, on a twin of the descriptor. The lock
    belongs to both: it is let go when both are closed, even if it is had only after the first was.
    """
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    twin = os.dup(fd)
    done = threading.Event()
    failure: list[OSError] = []

    def take() -> None:
        try:
            fcntl.flock(twin, fcntl.LOCK_EX)
        except OSError as error:
            failure.append(error)
        finally:
            os.close(twin)
            done.set()

    threading.Thread(target=take, name="harness-admission", daemon=True).start()
    in_time = done.wait(deadline.timeout())
    if failure:
        raise failure[0]
    return in_time


_this_process = (0, "")


def owner() -> str:
    """Return this process' own name: its id is another's in another namespace, or later."""
    global _this_process
    if _this_process[0] != os.getpid():
        _this_process = (os.getpid(), secrets.token_hex(6))
    return _this_process[1]
