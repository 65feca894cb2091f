"""A server as a process of this host, where no Docker engine answers.

The program is the same as in the container, from the same packages. The packages' own loader runs it
with their own libraries (``ld.so(8)``, ``--library-path``), so nothing is installed. It is killed when
its owner dies (:class:`~harness.qemu.process.OwnedProcess`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from harness.deadline import NEVER, Deadline
from harness.errors import ServiceError
from harness.qemu.process import OwnedProcess
from harness.services.output import ServerOutput
from harness.services.programs import Places, Program

_REDIRECT = 'exec >"/proc/self/fd/$0" 2>&1; exec "$@"'  # dash accepts one digit only in >&N


def unpack(tar: Path, root: Path) -> Path:
    """Unpack the tar of the programs into a folder of the run and return the folder."""
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
        program: The program.
        root: The folder with the unpacked programs.
        data: The folder that it serves.
        work: A folder in which it may write.
        log: The file for its output.
        deadline: The end of the wait until it is ready.
        on_exit: Called once, from a thread of its own, when the process has ended, with the end of its
            output.

    Raises:
        ServiceError: The process ended, or cannot run here.
        WaitTimeoutError: The deadline passed before it was ready.
    """

    by = "a local process"

    def __init__(
        self,
        program: Program,
        root: Path,
        data: Path,
        work: Path,
        log: Path,
        deadline: Deadline,
        on_exit: Callable[[str], None],
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
        self._on_exit = on_exit
        with contextlib.ExitStack() as stack:
            # Either this process binds the port and the server inherits it, or the server binds a port
            # and prints its number. A port that is bound, closed and bound again may be lost between.
            prefix: list[str] = []
            inherited = []
            listen = "127.0.0.1:0"
            if program.inherits:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                listen = "{}:{}".format(*listener.getsockname())
                prefix = ["/usr/bin/env", f"NGINX={listener.fileno()};"]
                inherited.append(listener.fileno())
            config.write_text(program.configure(places, listen))
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
            output = os.fdopen(reading, "rb")
            try:
                self._process = OwnedProcess(
                    [
                        # The shell redirects the program's output to the pipe.
                        *("/bin/sh", "-c", _REDIRECT, str(writing), *prefix),
                        *(str(loader), "--library-path", str(libraries), str(root / program.path)),
                        *program.arguments(str(config)),
                    ],
                    stderr=log,
                    pass_fds=(*inherited, writing),
                )
            except BaseException:
                output.close()
                raise
        self._output = ServerOutput(_lines(output), log, program.ready, self._end)
        try:
            match = self._output.wait_ready(program.name, deadline)
        except BaseException:
            self.close()
            raise
        port = match.groupdict().get("port") or listen.rpartition(":")[2]
        self.address = ("127.0.0.1", int(port))

    def _end(self, last: str) -> None:
        # The process ends with its output; on_exit is called when both have ended.
        self._process.wait(NEVER)
        self._on_exit(last)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.running

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The end of the output."""
        return self._output.last

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._output.join()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from file
