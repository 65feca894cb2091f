"""The sockets of running processes: where they are, how they are found, how dead ones are swept.

A socket is ``PID-RANDOM.sock``; keys for ``harness ssh`` lie beside it in ``PID-RANDOM.keys/``. The
folder is ``harness/`` of ``XDG_RUNTIME_DIR``, or ``live/`` of the cache where there is none. A socket is
dead if nobody listens on it: ``connect`` is refused (``unix(7)``). That needs no process id, which
another process may have by now, and which means nothing in another PID namespace. One lock a folder is
held while a socket is made and while dead ones are swept: one that is being made is not taken for dead.

The path of a socket has at most 107 bytes. A longer one is reached by ``/proc/self/fd`` and the
descriptor of its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import paths
from harness.errors import HarnessError

SUFFIX: Final = ".sock"
KEYS: Final = ".keys"

SECONDS: Final = 10.0
"""How long a process may take to accept, to ask or to answer: one that is stopped never does."""

_LOCK: Final = "lock"
_WAITING: Final = 16
"""Connections that may wait to be accepted."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A socket that a process listens on, and its folder of keys.

    Attributes:
        path: The socket.
        listener: The listening socket.
    """

    path: Path
    listener: socket.socket

    @property
    def keys(self) -> Path:
        """The folder of keys; it may not exist."""
        return self.path.with_suffix(KEYS)

    def remove(self) -> None:
        """Remove the socket and the keys."""
        _remove(self.path)


def listen() -> Endpoint:
    """Listen on a new socket of this process; sweep the dead ones beside it.

    Raises:
        OSError: The folder cannot be made, or belongs to somebody else.
    """
    folder = paths.live_dirs()[0]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = folder.stat()
    if mode.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to user {mode.st_uid}")
    folder.chmod(0o700)  # another umask, or an older folder
    with _locked(folder):
        _sweep(folder)
        path = folder / f"{os.getpid()}-{secrets.token_hex(3)}{SUFFIX}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(path) as name:
                listener.bind(name)
            listener.listen(_WAITING)
        except OSError:
            listener.close()
            raise
    return Endpoint(path, listener)


def connect(path: Path) -> socket.socket:
    """Return a connection to a socket.

    Raises:
        OSError: Nobody listens on it.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SECONDS)
    try:
        with _short(path) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


def sockets() -> list[Path]:
    """Sweep dead sockets; return those of running processes, the oldest first."""
    living: list[Path] = []
    for folder in paths.live_dirs():
        # A folder that is not there has no sockets; one that cannot be read is not this user's.
        with contextlib.suppress(OSError), _locked(folder):
            _sweep(folder)
            living += folder.glob(f"*{SUFFIX}")
    return sorted(living, key=_age)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed; the lock is held."""
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            connect(path).close()
        except ConnectionRefusedError:
            _remove(path)
        except OSError:
            continue  # removed by its owner meanwhile, or not ours to judge
    for keys in folder.glob(f"*{KEYS}"):
        if not keys.with_suffix(SUFFIX).exists():
            shutil.rmtree(keys, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path.with_suffix(KEYS), ignore_errors=True)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name of a path that is short enough for a socket's address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class GoneError(HarnessError):
    """The process that a request was for does not answer, or has ended."""
