"""A server in a container, by testcontainers, where a Docker engine answers.

Nothing is pulled from a registry of images: the image is imported from the tar of packages, once per
engine, and named after its digest. Containers of killed runs are removed in two ways:

* a guard process beside each container removes it as soon as this process is gone (``_guard.py``);
* if the guard was killed as well, the next run on this host removes it, by the container's labels.

testcontainers' own reaper does the same from a container, whose image would have to be pulled; it is
switched off.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.deadline import Deadline
from harness.errors import ServiceError
from harness.services import _guard
from harness.services.output import ServerOutput
from harness.services.programs import Places, Program

if TYPE_CHECKING:
    from docker import DockerClient

CLOSE: Final = 30.0
"""Seconds within which the output of a stopped container ends: the engine kills it after 10 seconds."""

HOST: Final = "org.harness.host"
OWNER: Final = "org.harness.owner"
"""Labels of a container: the host, as :func:`host_label` names it, and the process that owns it."""

ASK: Final = 10.0
"""Seconds within which an engine answers."""

_DATA, _WORK = "/srv/data", "/srv/work"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def host_label() -> str:
    """Return a name of this boot of this host and of the PID namespace.

    A process id is unique within these.
    """
    return f"{socket.gethostname()}/{_boot_id()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _started(pid: int) -> str:
    """Return the start of a process in ticks since boot, ``proc_pid_stat(5)``; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def owner_label() -> str:
    """Return a name of this process that no later process with the same id has."""
    return f"{os.getpid()}:{_started(os.getpid())}"


def _connect() -> tuple[DockerClient | None, str]:
    """Return a client and the engine's version, or ``None`` and the reason."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=ASK)
        return client, str(client.version()["Version"])
    except (DockerException, OSError, KeyError) as error:
        return None, str(error)


class Engine:
    """A Docker engine that answers.

    Raises:
        ServiceError: No engine answers; the evidence is the reason.
    """

    def __init__(self) -> None:
        from testcontainers.core.config import testcontainers_config

        testcontainers_config.ryuk_disabled = True
        # docker-py does not close the socket of a refused connection. The garbage collector warns of it
        # whenever it runs, which may be in an unrelated test: so collect it here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            client, answer = _connect()
            if client is None:
                gc.collect()
        if client is None:
            raise ServiceError("no Docker engine answers", evidence=answer)
        self.client: DockerClient = client
        self.version = answer

    def sweep(self) -> int:
        """Remove the containers of processes of this host that have ended; return their number."""
        from docker.errors import DockerException

        removed = 0
        for container in self.client.containers.list(
            all=True, filters={"label": f"{HOST}={host_label()}"}
        ):
            pid, _, started = str(container.labels.get(OWNER, "")).partition(":")
            if pid.isdigit() and _started(int(pid)) == started:
                continue
            with contextlib.suppress(DockerException):  # another run may sweep at the same time
                container.remove(force=True, v=True)
                removed += 1
        return removed

    def image(self, tar: Path, digest: str) -> str:
        """Import a tar as an image unless the engine has it already, and return the image's name.

        Raises:
            ServiceError: The engine refused the tar.
        """
        from docker.errors import DockerException, ImageNotFound

        name = f"harness-services:{digest}"
        try:
            try:
                self.client.images.get(name)
            except ImageNotFound:
                # This is "docker import": a tar of a root file system becomes an image.
                self.client.api.timeout = 300
                self.client.api.import_image_from_file(
                    str(tar), repository="harness-services", tag=digest
                )
                self.client.images.get(name)
        except DockerException as error:
            raise ServiceError(
                "the Docker engine refused the image", evidence=str(error)
            ) from error
        return name


class ContainerServer:
    """A server's container.

    Args:
        program: The program.
        engine: The engine.
        image: The image's name.
        data: The folder that it serves; the engine and Harness both see it.
        work: A folder in which it may write.
        log: The file for its output.
        deadline: The end of the wait until it is ready.
        on_exit: Called once, from a thread of its own, when the container has ended, with the end of its
            output.

    Raises:
        ServiceError: The container ended, or the engine does not run it.
        WaitTimeoutError: The deadline passed before it was ready.
    """

    by = "a container"

    def __init__(
        self,
        program: Program,
        engine: Engine,
        image: str,
        data: Path,
        work: Path,
        log: Path,
        deadline: Deadline,
        on_exit: Callable[[str], None],
    ) -> None:
        from docker.errors import DockerException
        from testcontainers.core.config import ConnectionMode
        from testcontainers.core.container import DockerContainer

        work.mkdir(parents=True, exist_ok=True)
        text = program.configure(Places(_DATA, _WORK, "/etc"), f"0.0.0.0:{program.port}")
        (work / f"{program.name}.conf").write_text(text)
        self._closed = False
        self._engine = engine
        self._container = (
            DockerContainer(image)
            .with_command([f"/{program.path}", *program.arguments(f"{_WORK}/{program.name}.conf")])
            .with_volume_mapping(data, _DATA, "rw")
            .with_volume_mapping(work, _WORK, "rw")
            .with_kwargs(
                labels={HOST: host_label(), OWNER: owner_label()},
                # It can read the files that this user can, and this user can remove its files.
                user=f"{os.getuid()}:{os.getgid()}",
                cap_drop=["ALL"],
            )
        )
        # The engine chooses a port, on the loopback only; testcontainers has no method for that. If
        # Harness itself runs in a container, the engine's loopback is another one: all interfaces.
        mode = self._container.get_docker_client().get_connection_mode()
        interface = "127.0.0.1" if mode is ConnectionMode.docker_host else ""
        self._container.ports[str(program.port)] = (interface, None)  # type: ignore[assignment]
        self._guard: _Guard | None = None
        self._output: ServerOutput | None = None
        try:
            self._container.start()
            wrapped = self._container.get_wrapped_container()
            self._guard = _Guard(engine, str(wrapped.id))
            self._output = ServerOutput(_lines(wrapped), log, program.ready, on_exit)
            self._output.wait_ready(f"the container of {program.name}", deadline)
            self.address = (
                str(self._container.get_container_host_ip()),
                int(self._container.get_exposed_port(program.port)),
            )
        except (DockerException, OSError) as error:
            self.close()
            raise ServiceError(
                f"the Docker engine does not run {program.name}", evidence=str(error)
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether the container has not ended."""
        return self._output is not None and not self._output.ended

    @property
    def id(self) -> str:
        """The container's id."""
        return str(self._container.get_container_id())

    @property
    def last_words(self) -> str:
        """The end of the output."""
        return self._output.last if self._output is not None else ""

    def close(self) -> None:
        """Stop and remove the container."""
        from docker.errors import DockerException

        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(DockerException, OSError):
            self._container.stop()
        if self._output is not None:
            # If the engine failed to stop the container, its output goes on; the guard, which is closed
            # next, removes the container.
            self._output.join(CLOSE)
        if self._guard is not None:
            self._guard.close()


def _lines(container: Any) -> Iterator[bytes]:
    """Yield the lines of a container's output until it ends."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        # A part may end within a line.
        for part in container.logs(stream=True, follow=True):
            *lines, rest = (rest + part).split(b"\n")
            yield from (line + b"\n" for line in lines)
    except HTTPError as error:  # docker-py passes it on when the engine goes
        raise OSError(f"the Docker engine broke off: {error}") from error
    if rest:
        yield rest


class _Guard:
    """The process that removes a container when this process is gone."""

    def __init__(self, engine: Engine, container: str) -> None:
        lifeline, self._ours = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, _guard.__file__, container],
                stdin=lifeline,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # it must outlive a Ctrl-C and the end of the terminal
            )
        finally:
            os.close(lifeline)

    def close(self) -> None:
        """Let the guard remove the container, if it is still there, and end."""
        os.close(self._ours)
        self._process.wait()
