"""A machine that is a port and a shell by script, for the tests of providers."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from harness.deadline import Limit, Scale
from harness.result import Result

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Script = Callable[[socket.socket, dict[str, Any]], None]
"""Answers one connection; has the record of the requests, to fill."""


class Server:
    """A server whose every connection is answered by a script, in a thread."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self.requests: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            request: dict[str, Any] = {"body": b""}
            self.requests.append(request)
            with connection, contextlib.suppress(OSError):
                script(connection, request)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


class Os:
    cluster_command = "skiff-cluster"
    cluster_credential = "skiff.cluster"

    def as_root(self, command: str) -> str:
        return f"as root: {command}"


class Node:
    """A machine: a name, the port of a server, and scripted results of commands."""

    def __init__(
        self,
        address: tuple[str, int] = ("127.0.0.1", 1),
        name: str = "node-1",
        ports: tuple[int, ...] = (2379,),
    ) -> None:
        self.name = name
        self._ports = ports
        self.address = address
        self.running = True
        self.scale = Scale(0.1)
        self.os = Os()
        self.commands: list[str] = []
        self.results: list[Result | Exception] = []

    def port(self, number: int) -> tuple[str, int]:
        assert number in self._ports
        return self.address

    def succeed(self, command: str) -> str:
        return self.execute(command).check().stdout

    def execute(self, command: str, deadline: Limit = 60) -> Result:
        assert deadline
        self.commands.append(command.removeprefix("as root: "))
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def take_head(connection: socket.socket, request: dict[str, Any]) -> bytes:
    """Read the head of a request; return what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or _ended()
    head, _, rest = data.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    request["path"] = line.split()[1]
    request["headers"] = {name.lower(): value for name, value in (f.split(": ") for f in fields)}
    request["body"] = rest
    return rest


def _ended() -> bytes:
    raise OSError("the client ended")


def take(connection: socket.socket, request: dict[str, Any]) -> None:
    """Read a request, with the permission in its middle."""
    take_head(connection, request)
    connection.sendall(CONTINUE)
    while len(request["body"]) < int(request["headers"]["content-length"]):
        request["body"] += connection.recv(65536) or _ended()


def until_client_ends(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def reset(connection: socket.socket) -> None:
    """End a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answering(content: Any, status: str = "200 OK") -> Script:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def script(connection: socket.socket, request: dict[str, Any]) -> None:
        take(connection, request)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    return script
