"""A server as a process of this host, where no Docker engine answers.

It is the same program as in the container, from the same packages, run by the packages' own loader
with their own libraries (``ld.so(8)``, ``--library-path``): nothing is installed. It is killed when
its owner dies (:class:`~harness.qemu.process.OwnedProcess`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import ServiceError
from harness.qemu.process import OwnedProcess
from harness.services.lines import Lines
from harness.services.software import Places, Program

_ONTO = 'exec >"/proc/self/fd/$0" 2>&1; exec "$@"'  # >&N knows one digit only, in dash


def unpack(tar: Path, root: Path) -> Path:
    """Unpack the tar of the software into a folder of the run and return it."""
    if not root.exists():
        part = root.with_name(f"{root.name}.part")
        part.mkdir(parents=True)
        with tarfile.open(tar) as archive:
            archive.extractall(part, filter="tar")
        part.rename(root)
    return root


class LocalServer:
    """A server's process.

    Args:
        program: What to run.
        root: The unpacked software.
        data: What it serves.
        work: A folder where it may write.
        log: The file for its output.
        deadline: When it has to be ready.

    Raises:
        ServiceError: if it ends, or cannot be run here.
        WaitTimeoutError: if it is not ready at the deadline.
    """

    by = "a local process"

    def __init__(
        self, program: Program, root: Path, data: Path, work: Path, log: Path, deadline: Deadline
    ) -> None:
        loader = next((root / "usr").glob("lib*/ld-linux*.so.*"), None)
        libraries = next((root / "usr/lib").glob("*-linux-gnu"), None)
        if loader is None or libraries is None:
            raise ServiceError(
                f"{root} has no loader or no libraries", hint="./run harness images gc"
            )
        work.mkdir(parents=True, exist_ok=True)
        config = work / f"{program.name}.conf"
        places = Places(str(data), str(work), str(root / "etc"))
        with contextlib.ExitStack() as stack:
            # Bound here and handed down, or bound by the server, which then says where: never bound,
            # closed and hoped for.
            prefix: list[str] = []
            passed = []
            listen = "127.0.0.1:0"
            if program.inherits:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                listen = "{}:{}".format(*listener.getsockname())
                prefix = ["/usr/bin/env", f"NGINX={listener.fileno()};"]
                passed.append(listener.fileno())
            config.write_text(program.configure(places, listen))
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
            self._lines = Lines(_read(reading), log, program.ready)
            self._process = OwnedProcess(
                [
                    # The shell puts the program's output onto the pipe, whose end tells of its end.
                    *("/bin/sh", "-c", _ONTO, str(writing), *prefix),
                    *(str(loader), "--library-path", str(libraries), str(root / program.path)),
                    *program.arguments(str(config)),
                ],
                stderr=log,
                pass_fds=(*passed, writing),
            )
        try:
            found = self._lines.wait_ready(program.name, deadline)
        except BaseException:
            self.close()
            raise
        port = found.groupdict().get("port") or listen.rpartition(":")[2]
        self.address = ("127.0.0.1", int(port))

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.running

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The end of what it printed."""
        return self._lines.last

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._lines.join()


def _read(descriptor: int) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb") as file:
        yield from file
