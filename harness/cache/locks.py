"""Locks between processes: ``flock(2)``, without polling.

A lock belongs to an open file. So it ends with the process, even with one that is killed. A
child process can inherit the open file; the lock then lasts until both have released it.
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
    """A lock that this process holds.

    It ends with :meth:`release`, at the end of a ``with`` block, or with the process. A lock object
    that is garbage collected stays held.

    Attributes:
        path: The lock file.
        fd: The open file, for a child process to inherit; -1 after the release.
        signed: Whether the lock file contains the process ID of the holder.
    """

    __slots__ = ("fd", "path", "signed")

    def __init__(self, path: Path, fd: int, *, signed: bool) -> None:
        self.path = path
        self.fd = fd
        self.signed = signed

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self.signed:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
            os.close(fd)

    def remove(self) -> None:
        """Remove the lock file and release the lock, which must not be shared."""
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
    """Take a lock if it is free; return ``None`` if another process holds it.

    Args:
        path: The lock file; it is made if it does not exist.
        shared: Whether other processes can share the lock.
        sign: Whether to write the process ID of an exclusive holder into the file.

    Raises:
        OSError: The lock file cannot be made.
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
    """Wait for a lock and take it.

    Args:
        path: The lock file; it is made if it does not exist.
        shared: Whether other processes can share the lock.
        deadline: The end of the wait.
        waiting: Called once, before the wait, with the process ID of the exclusive holder; with
            ``None`` if the lock is shared or its holder did not sign it.

    Raises:
        OSError: The lock file cannot be made.
        WaitTimeoutError: The deadline passed.
    """
    reported = False
    while True:
        if held := try_lock(path, shared=shared):
            return held
        if not reported:
            waiting(holder(path))
            reported = True
        fd = _wait(path, shared=shared, deadline=deadline)
        if held := _checked(path, fd, sign=not shared):
            return held


def holder(path: Path) -> int | None:
    """Return the process ID of a lock's exclusive holder; ``None`` if the lock file has none."""
    try:
        with path.open("rb") as file:
            return int(file.read(_PID_LENGTH))
    except (OSError, ValueError):
        return None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _checked(path: Path, fd: int, *, sign: bool) -> Lock | None:
    """Return the lock; ``None`` if its file was removed before this process had the lock."""
    here = os.fstat(fd)
    try:
        there = path.stat()
    except FileNotFoundError:
        there = None
    if there is None or (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
        os.close(fd)
        return None
    if sign:
        # gc needs locks to free a full disk, so a lock must not need free space.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d" % os.getpid(), 0)
    return Lock(path, fd, signed=sign)


def _wait(path: Path, *, shared: bool, deadline: Deadline) -> int:
    """Wait for the lock of a file; return the open file.

    ``flock(2)`` has no timeout, so a thread waits in it. After the deadline the thread waits on; when it
    gets the lock, it releases it at once. It is a daemon thread, so the process can end meanwhile.
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
        in_time = deadline.wait(done.wait)
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
            deadline,
            evidence=str(path),
            hint="look at that process; kill it if it hangs",
        )
    if failure:
        os.close(fd)
        raise failure[0]
    return fd
