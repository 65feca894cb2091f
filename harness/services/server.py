"""Servers that guests talk to: an update server and a container registry, real ones.

Each is a real server (in a container, or as a local process), a front of TLS before it, faults, and a
log of what was asked for. A server is a context manager; nothing of it outlives its process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Protocol, Self

from harness.deadline import Deadline, after
from harness.errors import ServiceError, StoreError, UsageError
from harness.services.ca import GUEST_ADDRESS, Ca
from harness.services.faults import Active, Fault, Faults, OfConnection
from harness.services.front import Certificates, Front
from harness.services.local import LocalServer, unpack
from harness.services.log import Log, Request
from harness.services.software import NGINX, REGISTRY, Program, Root
from harness.spec import Reach
from harness.store import Store

START: Final = 60.0
"""Seconds that a server may take to be ready."""

WAYS: Final = ("auto", "docker", "process")
"""How servers run: as one can, or as told."""


class Backend(Protocol):
    """A real server that runs."""

    by: str
    address: tuple[str, int]

    @property
    def running(self) -> bool:
        """Whether it has not ended."""

    @property
    def last_words(self) -> str:
        """The end of what it printed."""

    def close(self) -> None:
        """End it."""


class Host:
    """How servers run on this host: in containers, or as processes where no engine answers.

    Args:
        store: The cache that has the software.
        folder: A folder of the run for the unpacked software.
        way: One of :data:`WAYS`.
        progress: Told what is done.

    Attributes:
        why: Why servers are local processes; empty if they are not.

    Raises:
        ServiceError: if containers are asked for and no engine answers.
        BuildError, StoreError: if the software cannot be had.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        way: str = "auto",
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        if way not in WAYS:
            raise UsageError(f"services run as {', '.join(WAYS)}, not {way!r}")
        self._folder = folder
        self.why = "asked for" if way == "process" else ""
        self._software = store.artifacts(Root(platform.machine()), progress=progress)
        if way == "process":
            self._engine = None
            return
        from harness.services.container import Engine

        try:
            self._engine = Engine()
            if swept := self._engine.sweep():
                progress(f"removed {swept} containers of runs that were killed")
        except ServiceError as error:
            if way == "docker":
                raise
            self._engine = None
            self.why = error.what

    @functools.cached_property
    def _image(self) -> str:
        assert self._engine is not None
        digest = self._software.manifest.artifacts["root"].sha256[:20]
        return self._engine.image(self._software["root"], digest)

    def start(
        self, program: Program, data: Path, work: Path, log: Path, deadline: Deadline
    ) -> Backend:
        """Start a program and return it when it is ready.

        Raises:
            ServiceError, WaitTimeoutError: if it does not get there.
        """
        if self._engine is not None:
            from harness.services.container import ContainerServer

            return ContainerServer(program, self._engine, self._image, data, work, log, deadline)
        root = unpack(self._software["root"], self._folder / "root")
        return LocalServer(program, root, data, work, log, deadline)


class Server:
    """A server that guests reach at a fixed address, over TLS.

    Args:
        host: How it runs.
        ca: The authority of its certificates.
        unknown: An authority that nobody is told of.
        evidence: The folder for its logs; its data is below ``disks/``, which goes with the run.

    Attributes:
        reach: The service as a guest's interface has it.
        data: The folder that it serves or stores in.
        by: ``a container`` or ``a local process``.
    """

    program: ClassVar[Program]
    place: ClassVar[Reach]

    def __init__(self, host: Host, ca: Ca, unknown: Ca, evidence: Path) -> None:
        name = self.place.name
        self.reach = self.place
        self.evidence = evidence
        self.data = evidence / "disks" / name
        self._work = work = evidence / "disks" / f"{name}-work"
        for folder in (self.data, work):
            folder.mkdir(parents=True)
        names = (self.place.address, "127.0.0.1", "localhost", f"{name}.harness.test")
        certificates = Certificates(
            ca.issue(names, label=name),
            ca.issue(names, label=f"{name}-expired", expired=True),
            unknown.issue(names, label=f"{name}-unknown"),
        )
        self._faults = Faults()
        self._log = Log(evidence / f"{name}-requests.jsonl")
        log = evidence / f"{name}-{self.program.name}.log"
        self._backend = host.start(self.program, self.data, work, log, after(START))
        self.by = self._backend.by
        self._front = Front(self._backend.address, certificates, self._faults, self._log)

    # --- what a test asks -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name among a machine's services."""
        return self.reach.name

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens on the host: host and port."""
        return self._front.address

    @property
    def guest(self) -> str:
        """Where guests find it: ``10.0.2.100`` or, with a port that is not HTTPS', ``...:5000``."""
        port = self.reach.port
        return self.reach.address if port == 443 else f"{self.reach.address}:{port}"

    @property
    def requests(self) -> list[Request]:
        """What was asked for since the test began, in order; TLS that failed included.

        Whoever has had a byte of an answer finds its request here.
        """
        return self._log.requests

    def fault(self, path: str | Fault, fault: Fault | None = None) -> Active:
        """Switch a fault on, until it is healed; at the end of a test all are.

        ``server.fault("/*.raw", CutOff(percent=50))``, or ``server.fault(UnknownCa())``: what
        concerns TLS has no path. As a context manager it ends with the block. Several for a path
        add up.

        Args:
            path: The pattern of paths, from the first ``/``, as :mod:`fnmatch` reads it (``*``
                stands for ``/`` as well); without the query.
            fault: What is wrong.

        Raises:
            UsageError: if path and fault do not go together.
        """
        if not isinstance(path, str):
            if fault is not None or not isinstance(path, OfConnection):
                raise UsageError(f"{path!r} needs a path: fault('/*', {path!r})")
            return self._faults.add("*", path)
        if fault is None or isinstance(fault, OfConnection):
            raise UsageError(f"{fault!r} takes no path: fault({fault!r})")
        return self._faults.add(path, fault)

    def heal(self) -> None:
        """Switch all faults off."""
        self._faults.heal()

    def reset(self) -> None:
        """Be as at the beginning: no fault, no request."""
        self.heal()
        self._log.forget()

    def check(self) -> None:
        """Raise if the real server has ended.

        Raises:
            ServiceError: with its last words.
        """
        if not self._backend.running:
            raise ServiceError(
                f"{self.program.name} has ended under its guests",
                evidence=f"{self.evidence}\n{self._backend.last_words}",
            )

    # --- its life -------------------------------------------------------------------------------

    def close(self) -> None:
        """End it and remove its data; its logs stay."""
        self._front.close()
        self._backend.close()
        for log in self._work.glob("*.log"):
            with contextlib.suppress(OSError):
                shutil.copyfile(log, self.evidence / f"{self.name}-access.log")
        for folder in (self.data, self._work):
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class UpdateServer(Server):
    """Serves files over HTTPS by nginx: ``https://10.0.2.100/NAME``."""

    program = NGINX
    place = Reach("updates", GUEST_ADDRESS, 443)

    @property
    def url(self) -> str:
        """Where guests find what is published, without a slash at its end."""
        return f"https://{self.guest}"

    def publish(self, source: Path | bytes | str, name: str | None = None) -> str:
        """Put a file where guests can fetch it and return its address for guests.

        A file on the same file system is linked, not copied.

        Args:
            source: The file, or what is to be in it.
            name: Its path on the server; the file's own name by default.

        Raises:
            UsageError: if contents have no name, or the name leads out of the server's folder.
            StoreError: if it cannot be written.
        """
        if name is None:
            if not isinstance(source, Path):
                raise UsageError("contents need a name to be published under")
            name = source.name
        target = self.data / name
        if ".." in target.parts or not target.is_relative_to(self.data):
            raise UsageError(f"{name!r} is no path below the server's root")
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, Path):
                _link(source, part)
            else:
                part.write_bytes(source.encode() if isinstance(source, str) else source)
            part.replace(target)
        except OSError as error:
            raise StoreError(f"{name} cannot be published: {error}") from error
        return f"{self.url}/{name}"

    def publish_folder(self, folder: Path) -> str:
        """Publish every file below a folder, by its path there, and return the server's address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.publish(path, str(path.relative_to(folder)))
        return self.url

    def withdraw(self, name: str) -> None:
        """Take a file away; harmless if it is not there."""
        (self.data / name).unlink(missing_ok=True)

    def reset(self) -> None:
        """Be as at the beginning: no fault, no request, no file."""
        super().reset()
        for path in self.data.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    readable = source.stat().st_mode & 0o444
    if readable:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


class Registry(Server):
    """A container registry over TLS: ``oci://10.0.2.100:5000/REPOSITORY:TAG``.

    What is pushed stays until the run ends: tests use tags of their own.
    """

    program = REGISTRY
    place = Reach("registry", GUEST_ADDRESS, 5000)

    def push(self, files: list[Path] | tuple[Path, ...], repository: str, tag: str) -> str:
        """Push files as an OCI artifact, a layer each, and return its reference for guests.

        The layers have their names in ``org.opencontainers.image.title`` (OCI image specification,
        annotations), as ORAS has it. They go to the registry itself, past faults and the log.

        Returns:
            ``10.0.2.100:5000/REPOSITORY:TAG``

        Raises:
            ServiceError: if the registry refuses.
        """
        from harness.services.oci import push

        self.check()
        push(self._backend.address, list(files), repository, tag)
        return f"{self.guest}/{repository}:{tag}"
