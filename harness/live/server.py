"""The side of the test's process: answers requests for its machines, each connection in a thread.

=============  =====================================================================================
``list``       the run, what it is paused at, and a status of each machine
``ssh``        user, host, port and key of a machine
``screenshot`` the picture on its screen, PNG in base64
``attach``     the connection becomes the console
``continue``   ends a pause
=============  =====================================================================================

A request is ``{"do": NAME, "machine": PID OF QEMU}``; an answer has ``"ok"``, and ``"error"`` if that is
false. What a guest printed is plain text in an answer (:func:`harness.console.text.plain`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from harness.console.outbox import Signal
from harness.console.text import last_lines
from harness.errors import HarnessError, UsageError
from harness.live import runtime
from harness.machine import Machine

SSH_PORT: Final = 22

_LONGEST: Final = 64 * 1024
"""Bytes of a request."""

_TAIL: Final = 4096
"""Bytes at the end of a console in which its last line is looked for."""

_PROMPT_SECONDS: Final = 5.0


class Server:
    """Answers for the machines of one process, from its first machine on.

    Args:
        run: The name of the run.
        worker: The name of the worker of pytest-xdist; empty in the only process.

    Raises:
        OSError: There can be no socket.
    """

    def __init__(self, run: str, worker: str = "") -> None:
        self._run = run
        self._worker = worker
        self._lock = threading.Lock()
        self._machines: list[weakref.ref[Machine[Any]]] = []
        self._connections: set[socket.socket] = set()
        self._attached: dict[int, socket.socket] = {}
        self._pause: tuple[dict[str, str], Signal] | None = None
        self._closed = False
        self._endpoint = runtime.listen()
        self._thread = threading.Thread(target=self._accept, name="harness-live", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The socket."""
        return self._endpoint.path

    def add(self, machine: Machine[Any]) -> None:
        """Answer for a machine for as long as it runs."""
        with self._lock:
            self._machines = [ref for ref in self._machines if ref() is not None]
            self._machines.append(weakref.ref(machine))

    def machines(self) -> list[Machine[Any]]:
        """Return the machines whose QEMU runs."""
        with self._lock:
            known = [machine for ref in self._machines if (machine := ref()) is not None]
        return [machine for machine in known if machine.running or machine.powered_off]

    @contextlib.contextmanager
    def paused(self, test: str, what: str, signal: Signal) -> Any:
        """Say in the block that a test is paused; a request to continue sets the signal."""
        with self._lock:
            self._pause = ({"test": test, "error": what}, signal)
        try:
            yield
        finally:
            with self._lock:
                self._pause = None
                attached = list(self._attached.values())
            # A person who holds a console would hold up the test.
            for connection in attached:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop answering, end all connections, and remove the socket and the keys."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        for each in (self._endpoint.listener, *connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes accept, too
        self._thread.join()
        self._endpoint.listener.close()
        self._endpoint.remove()

    # --- connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._endpoint.listener.accept()
            except OSError:
                if self._closed:
                    return
                continue  # the caller has gone, or descriptors are short for a moment
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="harness-live-call", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(runtime.SECONDS)
            if _user_of(connection) == os.getuid():
                self._answer(connection)
        except OSError:
            pass  # the caller has gone
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket) -> None:
        try:
            request = _read(connection)
            if request is None:
                return
            action = request.get("do")
            if action == "attach":
                self._attach(connection, self._machine(request))
                return
            answer = self._actions().get(str(action), _unknown)(request)
        except HarnessError as error:
            answer = {"ok": False, "error": error.what, "hint": error.hint}
        except OSError:
            raise
        except Exception as error:
            # A machine that ends meanwhile breaks things in many ways; the test does not notice.
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}", "hint": ""}
        _send(connection, answer)

    def _actions(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "list": self._list,
            "ssh": self._ssh,
            "screenshot": self._screenshot,
            "continue": self._continue,
        }

    def _machine(self, request: dict[str, Any]) -> Machine[Any]:
        for machine in self.machines():
            if machine.pid == request.get("machine"):
                return machine
        raise UsageError("the machine has ended", hint="harness ps")

    # --- answers ------------------------------------------------------------------------------

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        with self._lock:
            pause = dict(self._pause[0]) if self._pause is not None else None
        return {
            "ok": True,
            "run": self._run,
            "worker": self._worker,
            "pid": os.getpid(),
            "paused": pause,
            "machines": [status(machine) for machine in self.machines()],
        }

    def _ssh(self, request: dict[str, Any]) -> dict[str, Any]:
        machine = self._machine(request)
        host, port = machine.port(SSH_PORT)
        folder = self._endpoint.keys
        folder.mkdir(mode=0o700, exist_ok=True)
        key = machine.key.write(folder / str(machine.pid))
        return {
            "ok": True,
            "user": machine.os.account.user,
            "host": host,
            "port": port,
            "key": str(key),
        }

    def _screenshot(self, request: dict[str, Any]) -> dict[str, Any]:
        machine = self._machine(request)
        display = machine.display
        with tempfile.TemporaryDirectory(dir=machine.evidence) as folder:
            picture = display.screenshot(Path(folder) / "screen.png").read_bytes()
        return {"ok": True, "png": base64.b64encode(picture).decode()}

    def _continue(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        with self._lock:
            if self._pause is None:
                raise UsageError("no test is paused", hint="pytest --pause-on-failure pauses")
            test, signal = self._pause
            signal.set()
        return {"ok": True, **test}

    def _attach(self, connection: socket.socket, machine: Machine[Any]) -> None:
        """Join a connection to a console.

        While the test goes on, it keeps its shell and its turn. In a pause the person gets a prompt.
        """
        with self._lock:
            attached = machine.pid in self._attached
            paused = self._pause is not None
            if not attached:
                self._attached[machine.pid] = connection
        if attached:
            raise UsageError(f"another terminal is attached to {machine.name}")
        try:
            _send(connection, {"ok": True, "paused": paused})
            connection.setblocking(False)
            console = machine.console
            had_shell = console.logged_in
            descriptor = connection.fileno()
            end = console.attach(descriptor, descriptor, beside=not paused)
            connection.close()
            if paused and had_shell and end == "left":
                # Another test may share the machine.
                with contextlib.suppress(HarnessError):
                    console.login(None, deadline=_PROMPT_SECONDS)
        except HarnessError:
            return  # the console has ended; the connection no longer takes answers
        finally:
            with self._lock:
                del self._attached[machine.pid]


def status(machine: Machine[Any]) -> dict[str, Any]:
    """Return what ``harness ps`` says of a machine."""
    doing = machine.timeline.doing(machine.name)
    step, seconds = (doing[0].name, doing[1]) if doing is not None else ("", 0.0)
    limit = doing[0].data.get("limit") if doing is not None else None
    try:
        ssh: str | None = "{}:{}".format(*machine.port(SSH_PORT))
    except UsageError:
        ssh = None
    failure = machine.failure
    return {
        "machine": machine.name,
        "test": machine.timeline.title,
        "image": str(machine.provenance.get("image", "")),
        "version": str(machine.provenance.get("version", "")),
        "arch": machine.spec.arch,
        "pid": machine.pid,
        "state": _state(machine),
        "failure": "" if failure is None else failure.what.partition("\n")[0],
        "step": step,
        "seconds": round(seconds, 1),
        "limit": limit,
        "console": _last_line(machine),
        "silent": round(machine.console.silent_for(), 1),
        "ssh": ssh,
        "evidence": str(machine.evidence),
    }


def _state(machine: Machine[Any]) -> str:
    if machine.powered_off:
        return "powered off"
    return "failed" if machine.failure is not None else "running"


def _last_line(machine: Machine[Any]) -> str:
    """Return the last line on a console, from the log: it takes no lock of the console's."""
    try:
        with machine.console.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            return last_lines(log.read(), 1)
    except OSError:
        return ""


def _unknown(request: dict[str, Any]) -> dict[str, Any]:
    raise UsageError(
        f"unknown request {request.get('do')!r}", hint="is it another version of Harness?"
    )


def _user_of(connection: socket.socket) -> int:
    """Return the user at the other end (``SO_PEERCRED``, unix(7))."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])


def _read(connection: socket.socket) -> dict[str, Any] | None:
    """Return a request; ``None`` if the caller only looked whether somebody listens."""
    data = bytearray()
    while not data.endswith(b"\n"):
        part = connection.recv(4096)
        if not part:
            return None
        data += part
        if len(data) > _LONGEST:
            raise UsageError("the request is too long")
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UsageError("the request is no JSON object")
    return request


def _send(connection: socket.socket, answer: dict[str, Any]) -> None:
    connection.sendall(json.dumps(answer).encode() + b"\n")
