"""A server in a container, by testcontainers, where a Docker engine answers.

No registry of images is asked for anything: the image is made from the tar of packages and named
after its digest, once per engine. What removes containers of killed runs:

* a guard beside each container removes it as soon as this process is gone (``_guard.py``);
* when the guard was killed as well, the next run of this host does, by the containers' labels.

testcontainers' own reaper does the same from a container of its own, whose image would have to be
pulled; it is switched off.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.deadline import Deadline
from harness.errors import ServiceError
from harness.services import _guard
from harness.services.lines import Lines
from harness.services.software import Places, Program

if TYPE_CHECKING:
    from docker import DockerClient

CLOSE: Final = 30.0
"""Seconds that a container's output may take to end when it is stopped: the engine kills it after 10."""

HOST: Final = "org.harness.host"
OWNER: Final = "org.harness.owner"
"""Labels of a container: the host, as :func:`host_label` names it, and the process that it is for."""

ASK: Final = 10.0
"""Seconds within which an engine answers whether it is there."""

_DATA, _WORK = "/srv/data", "/srv/work"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def host_label() -> str:
    """Name this boot of this host, and the PID namespace: what a process id is unique in."""
    return f"{socket.gethostname()}/{_boot_id()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot, ``proc_pid_stat(5)``; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def owner_label() -> str:
    """Name this process so that no later one of the same id is taken for it."""
    return f"{os.getpid()}:{_started(os.getpid())}"


def _connect() -> tuple[DockerClient | None, str]:
    """Return a client and the engine's version, or ``None`` and why there is none."""
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
        ServiceError: if none does; says why.
    """

    def __init__(self) -> None:
        from testcontainers.core.config import testcontainers_config

        testcontainers_config.ryuk_disabled = True
        # docker-py leaves the socket of a connection that was refused to the collector, which warns
        # of it whenever it comes by: in somebody else's test.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            client, said = _connect()
            if client is None:
                gc.collect()
        if client is None:
            raise ServiceError("no Docker engine answers", evidence=said)
        self.client: DockerClient = client
        self.version = said

    def sweep(self) -> int:
        """Remove containers of processes of this host that are gone; return how many."""
        from docker.errors import DockerException

        removed = 0
        for each in self.client.containers.list(
            all=True, filters={"label": f"{HOST}={host_label()}"}
        ):
            pid, _, started = str(each.labels.get(OWNER, "")).partition(":")
            if pid.isdigit() and _started(int(pid)) == started:
                continue
            with contextlib.suppress(DockerException):  # another run sweeps as well
                each.remove(force=True, v=True)
                removed += 1
        return removed

    def image(self, tar: Path, digest: str) -> str:
        """Return the name of the image of a tar, imported if the engine has none of it.

        Raises:
            ServiceError: if the engine does not take it.
        """
        from docker.errors import DockerException, ImageNotFound

        name = f"harness-services:{digest}"
        try:
            try:
                self.client.images.get(name)
            except ImageNotFound:
                # The engine's word for "docker import": a tar of a root becomes an image.
                self.client.api.timeout = 300
                self.client.api.import_image_from_file(
                    str(tar), repository="harness-services", tag=digest
                )
                self.client.images.get(name)
        except DockerException as error:
            raise ServiceError("the Docker engine takes no image", evidence=str(error)) from error
        return name


class ContainerServer:
    """A server's container.

    Args:
        program: What to run.
        engine: The engine.
        image: The image's name.
        data: What it serves; a folder that engine and Harness both see.
        work: A folder where it may write.
        log: The file for its output.
        deadline: When it has to be ready.

    Raises:
        ServiceError: if it ends, or the engine does not run it.
        WaitTimeoutError: if it is not ready at the deadline.
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
                # What it writes is this user's, and it reads what this user may.
                user=f"{os.getuid()}:{os.getgid()}",
                cap_drop=["ALL"],
            )
        )
        # A port of the engine's choice, on the loopback only, for which testcontainers has no word.
        # Where Harness itself is in a container the engine's loopback is not ours: all interfaces.
        mode = self._container.get_docker_client().get_connection_mode()
        interface = "127.0.0.1" if mode is ConnectionMode.docker_host else ""
        self._container.ports[str(program.port)] = (interface, None)  # type: ignore[assignment]
        self._guard: _Guard | None = None
        self._lines: Lines | None = None
        try:
            self._container.start()
            wrapped = self._container.get_wrapped_container()
            self._guard = _Guard(engine, str(wrapped.id))
            self._lines = Lines(_output(wrapped), log, program.ready)
            self._lines.wait_ready(f"the container of {program.name}", deadline)
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
        """Whether it has not ended."""
        return self._lines is not None and not self._lines.ended

    @property
    def id(self) -> str:
        """The container's id."""
        return str(self._container.get_container_id())

    @property
    def last_words(self) -> str:
        """The end of what it printed."""
        return self._lines.last if self._lines is not None else ""

    def close(self) -> None:
        """Remove it."""
        from docker.errors import DockerException

        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(DockerException, OSError):
            self._container.stop()
        if self._lines is not None:
            # An engine that does not end the container does not end its output either; the guard, which
            # is next, tries again.
            self._lines.join(CLOSE)
        if self._guard is not None:
            self._guard.close()


def _output(container: Any) -> Iterator[bytes]:
    """Yield the lines of a container's output until it ends."""
    rest = b""
    # The engine cuts where it likes.
    for part in container.logs(stream=True, follow=True):
        *lines, rest = (rest + part).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


class _Guard:
    """The process that removes a container when this one is gone."""

    def __init__(self, engine: Engine, container: str) -> None:
        lifeline, self._ours = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, _guard.__file__, container],
                stdin=lifeline,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # neither a Ctrl-C nor the terminal's end is for it
            )
        finally:
            os.close(lifeline)

    def close(self) -> None:
        """Let it end; removing what is gone is harmless."""
        os.close(self._ours)
        self._process.wait()
