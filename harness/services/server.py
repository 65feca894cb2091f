"""The servers that guests reach: an update server and a container registry.

Each is a real server, in a container or as a local process, behind a TLS proxy that applies faults and
logs requests. A server is a context manager; nothing of it outlives its process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Protocol, Self

from harness.artifacts import Store
from harness.deadline import SUDDEN, UNSCALED, Deadline, Scale
from harness.errors import ServiceError, StoreError, UsageError
from harness.scope import Scope
from harness.services.ca import GUEST_ADDRESS, Ca
from harness.services.faults import ActiveFault, ConnectionFault, Fault, Faults
from harness.services.local import LocalServer, unpack
from harness.services.programs import NGINX, REGISTRY, Program, ProgramTree
from harness.services.request_log import Request, RequestLog
from harness.services.tls_proxy import Certificates, TlsProxy
from harness.spec import GuestForward

START: Final = 480.0
"""Seconds within which a server is ready; an idle host needs one, a loaded host many times that."""

SERVICE_MODES: Final = ("auto", "docker", "process")
"""How servers run: in containers or as processes; ``auto`` prefers containers."""


class Backend(Protocol):
    """The real server, which runs."""

    by: str
    address: tuple[str, int]

    @property
    def running(self) -> bool:
        """Whether the server has not ended."""

    @property
    def last_words(self) -> str:
        """The end of the output."""

    def close(self) -> None:
        """End the server."""


class ServiceRunner:
    """Runs servers on this host: in containers, or as processes where no engine answers.

    Args:
        store: The store that provides the programs.
        folder: A folder of the run for the unpacked programs.
        mode: One of :data:`SERVICE_MODES`.
        progress: Called with a line for each step.
        scale: Its clock stretches the start of a server, and knows the pressure on the host.

    Attributes:
        why: The reason why servers are local processes; empty if they are not.

    Raises:
        UsageError: The mode is unknown.
        ServiceError: The mode is ``docker`` and no engine answers.
        BuildError, StoreError: The programs cannot be built or read.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        mode: str = "auto",
        progress: Callable[[str], None] = lambda line: None,
        scale: Scale = UNSCALED,
    ) -> None:
        self.scale = scale
        if mode not in SERVICE_MODES:
            raise UsageError(f"unknown service mode {mode!r} (choose {', '.join(SERVICE_MODES)})")
        self._folder = folder
        self.why = "asked for" if mode == "process" else ""
        self._programs = store.artifacts(ProgramTree(platform.machine()), say=progress)
        if mode == "process":
            self._engine = None
            return
        from harness.services.container import Engine

        try:
            self._engine = Engine()
            if swept := self._engine.sweep():
                progress(f"removed {swept} containers of runs that were killed")
        except ServiceError as error:
            if mode == "docker":
                raise
            self._engine = None
            self.why = error.what

    @functools.cached_property
    def _image(self) -> str:
        assert self._engine is not None
        digest = self._programs.manifest.artifacts["root"].sha256[:20]
        return self._engine.image(self._programs["root"], digest)

    def start(
        self,
        program: Program,
        data: Path,
        work: Path,
        log: Path,
        deadline: Deadline,
        on_exit: Callable[[str], None],
    ) -> Backend:
        """Start a program and return it when it is ready.

        Args:
            program: The program.
            data: The folder that it serves.
            work: A folder in which it may write.
            log: The file for its output.
            deadline: The end of the wait until it is ready.
            on_exit: Called once, from another thread, when it has ended, with the end of its output.

        Raises:
            ServiceError: It ended, or cannot run.
            WaitTimeoutError: The deadline passed before it was ready.
        """
        if self._engine is not None:
            from harness.services.container import ContainerServer

            return ContainerServer(
                program, self._engine, self._image, data, work, log, deadline, on_exit
            )
        root = unpack(self._programs["root"], self._folder / "root")
        return LocalServer(program, root, data, work, log, deadline, on_exit)


class Server:
    """A server that guests reach at a fixed address, over TLS.

    Args:
        runner: Runs the program.
        ca: The authority that issues the certificates.
        unknown: An authority that no guest trusts.
        evidence: The folder for its logs; its data is below ``disks/``, which is removed with the run.

    Attributes:
        forward: The guest forward that leads to it.
        data: The folder that it serves or stores in.
        by: ``a container`` or ``a local process``.
    """

    program: ClassVar[Program]
    place: ClassVar[GuestForward]

    def __init__(self, runner: ServiceRunner, ca: Ca, unknown: Ca, evidence: Path) -> None:
        name = self.place.name
        self._scale = runner.scale
        self.forward = self.place
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
        self._log = RequestLog(evidence / f"{name}-requests.jsonl")
        self._lock = threading.Lock()
        self._scopes: list[Scope] = []
        self._failure: ServiceError | None = None
        self._closing = False
        log = evidence / f"{name}-{self.program.name}.log"
        self._backend = runner.start(
            self.program, self.data, work, log, self._scale.after(START), self._on_exit
        )
        self.by = self._backend.by
        self._proxy = TlsProxy(self._backend.address, certificates, self._faults, self._log)

    # --- words for tests ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name among a machine's services."""
        return self.forward.name

    @property
    def address(self) -> tuple[str, int]:
        """The host and port at which it listens on the host."""
        return self._proxy.address

    @property
    def guest(self) -> str:
        """The address for guests: ``10.0.2.100`` or, with a port other than 443, ``...:5000``."""
        port = self.forward.port
        return self.forward.address if port == 443 else f"{self.forward.address}:{port}"

    @property
    def requests(self) -> list[Request]:
        """The requests since the test began, in order, including TLS handshakes that failed.

        A client that has received a byte of an answer finds its request here.
        """
        return self._log.requests

    def fault(self, path: str | Fault, fault: Fault | None = None) -> ActiveFault:
        """Switch a fault on, until it is healed or the test ends.

        ``server.fault("/*.raw", CutOff(percent=50))``, or ``server.fault(UnknownCa())``: a fault of
        TLS has no path. As a context manager it ends with the block. Several faults of a path add up.

        Args:
            path: The pattern of paths, from the first ``/``, without the query. The syntax is that of
                :mod:`fnmatch`; ``*`` matches ``/`` as well.
            fault: The fault.

        Raises:
            UsageError: A fault of answers has no path, or a fault of connections has one.
        """
        if not isinstance(path, str):
            if fault is not None or not isinstance(path, ConnectionFault):
                raise UsageError(f"{path!r} needs a path: fault('/*', {path!r})")
            return self._faults.add("*", path)
        if fault is None or isinstance(fault, ConnectionFault):
            raise UsageError(f"{fault!r} takes no path: fault({fault!r})")
        return self._faults.add(path, fault)

    def heal(self) -> None:
        """Switch all faults off."""
        self._faults.heal()

    def reset(self) -> None:
        """Clear all faults and recorded requests."""
        self.heal()
        self._log.clear()

    def check(self) -> None:
        """Raise if the real server has ended.

        Raises:
            ServiceError: The server has ended; the evidence is the end of its output.
        """
        with self._lock:
            failure = self._failure
        if failure is not None:
            raise failure
        if not self._backend.running:
            raise self._error(self._backend.last_words)

    # --- its failure scope ----------------------------------------------------------------------

    @contextlib.contextmanager
    def joined(self, scope: Scope) -> Iterator[None]:
        """Fail ``scope`` when the server ends within the block; at once if it has ended already.

        Any number of scopes can be joined at the same time. A server that is closed fails none.
        """
        with self._lock:
            self._scopes.append(scope)
            failure = self._failure
        try:
            if failure is not None:
                scope.fail(failure)
            yield
        finally:
            with self._lock:
                self._scopes.remove(scope)

    def _on_exit(self, last_words: str) -> None:
        """Fail the scopes; runs once, in a thread of the backend."""
        with self._lock:
            if self._closing:
                return
            self._failure = failure = self._error(last_words)
            scopes = list(self._scopes)
        # Without the lock: the waits that this ends may call this server.
        for scope in scopes:
            scope.fail(failure)

    def _error(self, last_words: str) -> ServiceError:
        return ServiceError(
            f"{self.program.name} of service {self.name} has ended under its guests",
            evidence=f"{self.evidence}\n{last_words}",
            pressure=self._scale.pressure(SUDDEN),
        )

    # --- its life -------------------------------------------------------------------------------

    def close(self) -> None:
        """End the server and remove its data; the logs stay."""
        with self._lock:
            self._closing = True
        self._proxy.close()
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
    place = GuestForward("updates", GUEST_ADDRESS, 443)

    @property
    def url(self) -> str:
        """The address of the published files for guests, without a slash at its end."""
        return f"https://{self.guest}"

    def publish(self, source: Path | bytes | str, name: str | None = None) -> str:
        """Put a file where guests can fetch it and return its address for guests.

        A file on the same file system is linked, not copied.

        Args:
            source: The file, or its contents.
            name: The path on the server; the file's own name by default.

        Raises:
            UsageError: Contents have no name, or the name leads out of the server's folder.
            StoreError: The file cannot be written.
        """
        if name is None:
            if not isinstance(source, Path):
                raise UsageError("contents need a name: publish(contents, name)")
            name = source.name
        target = self.data / name
        if ".." in target.parts or not target.is_relative_to(self.data):
            raise UsageError(f"{name!r} is not a path below the server's root")
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
        """Remove a published file; does nothing if it is not there."""
        (self.data / name).unlink(missing_ok=True)

    def reset(self) -> None:
        """Clear all faults, recorded requests and published files."""
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

    Pushed artifacts stay until the run ends, so each test uses tags of its own.
    """

    program = REGISTRY
    place = GuestForward("registry", GUEST_ADDRESS, 5000)

    def push(self, files: list[Path] | tuple[Path, ...], repository: str, tag: str) -> str:
        """Push files as an OCI artifact, one layer a file, and return its reference for guests.

        Each layer has its file's name in ``org.opencontainers.image.title`` (OCI image specification,
        annotations), as ORAS does. The files go to the registry directly: faults do not apply and
        the log does not record the requests.

        Returns:
            ``10.0.2.100:5000/REPOSITORY:TAG``

        Raises:
            ServiceError: The registry refused, or has ended.
        """
        from harness.services.oci import push

        self.check()
        push(self._backend.address, list(files), repository, tag)
        return f"{self.guest}/{repository}:{tag}"

    def push_index(
        self, sets: Sequence[tuple[str, Sequence[Path]]], repository: str, tag: str
    ) -> str:
        """Push an OCI artifact for each architecture and an index of them; return its reference.

        Args:
            sets: Architectures, by Harness' names, and their files. The entries of the index have this
                order. Several may be for one architecture, as a fault of a release may leave them: "the
                first matching entry SHOULD be used" (OCI image specification, image-index.md).
            repository: The repository, such as ``os/skiff``.
            tag: The index's tag, such as ``2``.

        Returns:
            ``10.0.2.100:5000/REPOSITORY:TAG``

        Raises:
            UnknownNameError: There is no such architecture.
            ServiceError: The registry refused, or has ended.
        """
        from harness.services.oci import push_index

        self.check()
        push_index(self._backend.address, sets, repository, tag)
        return f"{self.guest}/{repository}:{tag}"
