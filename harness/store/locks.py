"""Locks between processes: ``flock(2)``, waited for without polling.

The lock belongs to the open file, so it ends with the process whatever ends it, and can be handed
to a child: the lock then lasts until the last of the two lets go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.deadline import NEVER, Deadline
from harness.errors import WaitTimeoutError

_PID_LENGTH: Final = 32


class Lock:
    """A lock that is held.

    It is let go by :meth:`release`, at the end of a ``with`` block, or when the process ends; not
    when the object is forgotten.
    """

    __slots__ = ("fd", "path", "signed")

    def __init__(self, path: Path, fd: int, *, signed: bool) -> None:
        self.path = path
        self.fd = fd
        self.signed = signed

    def release(self) -> None:
        """Let go of it; a second time does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self.signed:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
            os.close(fd)

    def remove(self) -> None:
        """Remove the file and let go; for who holds it alone."""
        self.path.unlink(missing_ok=True)
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def try_lock(path: Path, *, shared: bool = False, sign: bool = True) -> Lock | None:
    """Take a lock if it is free; ``None`` if somebody holds it.

    Args:
        path: The lock file; made if it is not there.
        shared: Whether others may hold it shared at the same time.
        sign: Whether to say in the file who holds it alone; not for a short look.

    Raises:
        OSError: if the lock file cannot be made.
    """
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if held := _checked(path, fd, sign=sign and not shared):
            return held


def lock(
    path: Path,
    *,
    shared: bool = False,
    deadline: Deadline = NEVER,
    waiting: Callable[[int | None], None] = lambda pid: None,
) -> Lock:
    """Take a lock, waiting for it.

    Args:
        path: The lock file; made if it is not there.
        shared: Whether others may hold it shared at the same time.
        deadline: When to give up.
        waiting: Told once, before the wait, the process that holds it alone; ``None`` where the
            holders share it, or one only looks.

    Raises:
        OSError: if the lock file cannot be made.
        WaitTimeoutError: if it was not to be had until the deadline.
    """
    told = False
    while True:
        if held := try_lock(path, shared=shared):
            return held
        if not told:
            waiting(holder(path))
            told = True
        fd = _wait(path, shared=shared, deadline=deadline)
        if held := _checked(path, fd, sign=not shared):
            return held


def holder(path: Path) -> int | None:
    """Return the process that holds a lock alone, as far as the lock file says."""
    try:
        with path.open("rb") as file:
            return int(file.read(_PID_LENGTH))
    except (OSError, ValueError):
        return None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _checked(path: Path, fd: int, *, sign: bool) -> Lock | None:
    """Return the lock, or ``None`` if its file was removed before it was ours."""
    here = os.fstat(fd)
    try:
        there = path.stat()
    except FileNotFoundError:
        there = None
    if there is None or (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
        os.close(fd)
        return None
    if sign:
        # A full disk must not keep anybody from the lock that gc needs to free it.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d" % os.getpid(), 0)
    return Lock(path, fd, signed=sign)


def _wait(path: Path, *, shared: bool, deadline: Deadline) -> int:
    """Return a locked descriptor of ``path``.

    ``flock(2)`` takes no timeout, so a thread waits in it. One that is given up on goes on waiting,
    and lets go at once when its turn comes; as a daemon it keeps no process alive.
    """
    fd = _open(path)
    done = threading.Event()
    mutex = threading.Lock()
    abandoned = False
    failure: list[OSError] = []

    def take() -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError as error:
            failure.append(error)
        with mutex:
            if abandoned:
                os.close(fd)
            done.set()

    threading.Thread(target=take, name=f"flock {path.name}", daemon=True).start()
    try:
        in_time = done.wait(deadline.timeout())
    except BaseException:
        in_time = False
        raise
    finally:
        with mutex:
            if not done.is_set():
                abandoned = True
            elif not in_time:
                os.close(fd)
    if not in_time:
        pid = holder(path)
        raise WaitTimeoutError(
            f"the lock {path.name}" + (f", held by process {pid}" if pid else ""),
            deadline.seconds,
            evidence=str(path),
            hint="see what that process does; kill it if it hangs",
        )
    if failure:
        os.close(fd)
        raise failure[0]
    return fd
