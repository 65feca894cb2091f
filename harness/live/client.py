"""The side of the other terminal: finds running machines by their names, and asks for them."""

from __future__ import annotations

import json
import os
import select
import socket
import termios
import tty
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.console.attach import ESCAPE_KEY, restore
from harness.errors import UsageError
from harness.live import runtime
from harness.live.runtime import GoneError

_LONGEST: Final = 64 * 1024 * 1024
"""Bytes of an answer; a picture is the largest."""

_RECENT: Final = 1 << 20
"""Bytes of output from which it is seen how to restore the terminal."""


@dataclass(frozen=True)
class Process:
    """A process of a run.

    Attributes:
        socket: Its socket.
        data: Its answer to ``list``.
    """

    socket: Path
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run, and of the worker if it is one."""
        return "/".join(filter(None, (self.data["run"], self.data["worker"])))

    @property
    def names(self) -> set[str]:
        """The names that a person may call it by."""
        return {self.name, self.data["run"], self.data["worker"], str(self.data["pid"])} - {""}


@dataclass(frozen=True)
class Target:
    """A machine of a process.

    Attributes:
        process: The process.
        data: The machine's status.
    """

    process: Process
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The machine's name with its run's."""
        return f"{self.process.name}/{self.data['machine']}"

    def ask(self, action: str) -> dict[str, Any]:
        """Return the answer to a request for the machine.

        Raises:
            UsageError, GoneError: See :func:`ask`.
        """
        return ask(self.process.socket, action, self.data["pid"])


def processes() -> list[Process]:
    """Return the processes of this user that have, or had, machines; the oldest first.

    One that ends meanwhile, or does not answer, is left out.
    """
    answered: list[Process] = []
    for path in runtime.sockets():
        try:
            answered.append(Process(path, ask(path, "list")))
        except (GoneError, UsageError):
            continue
    return answered


def target(name: str, among: Sequence[Process]) -> Target:
    """Return the machine of a name: ``MACHINE``, ``RUN/MACHINE``, or the process id of its QEMU.

    Raises:
        UsageError: There is no such machine, or there are several; lists the choices.
    """
    targets = [Target(process, data) for process in among for data in process.data["machines"]]
    run, _, machine = name.rpartition("/")
    chosen = [
        each
        for each in targets
        if machine in {each.data["machine"], str(each.data["pid"])}
        and (not run or run in each.process.names)
    ]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise UsageError(f"several machines are called {name!r}", hint=_choices(chosen))
    hint = _choices(targets) if targets else "no test with a machine runs as this user"
    raise UsageError(f"no running machine is called {name!r}", hint=hint)


def _choices(targets: Sequence[Target]) -> str:
    names = [each.name for each in targets]
    lines = [
        f"{each.name if names.count(each.name) == 1 else each.data['pid']}  ({each.data['test']})"
        for each in targets
    ]
    return "choose one of:\n    " + "\n    ".join(lines)


def ask(path: Path, action: str, machine: int | None = None) -> dict[str, Any]:
    """Return the answer to a request.

    Raises:
        UsageError: The process refuses; says why.
        GoneError: The process has ended, or does not answer.
    """
    connection, answer, _ = _request(path, action, machine)
    connection.close()
    return answer


def _request(
    path: Path, action: str, machine: int | None
) -> tuple[socket.socket, dict[str, Any], bytes]:
    """Return the connection, the answer, and what came behind it."""
    try:
        connection = runtime.connect(path)
    except OSError as error:
        raise GoneError(f"the run does not answer: {error}", hint="harness ps") from error
    try:
        connection.sendall(json.dumps({"do": action, "machine": machine}).encode() + b"\n")
        data = bytearray()
        while b"\n" not in data:
            part = connection.recv(1 << 16)
            if not part or len(data) > _LONGEST:
                raise GoneError("the run has ended meanwhile", hint="harness ps")
            data += part
        line, _, rest = bytes(data).partition(b"\n")
        answer = json.loads(line)
    except (OSError, ValueError) as error:
        connection.close()
        raise GoneError(f"the run does not answer: {error}", hint="harness ps") from error
    except GoneError:
        connection.close()
        raise
    if not answer.get("ok"):
        connection.close()
        raise UsageError(str(answer.get("error")), hint=str(answer.get("hint", "")))
    return connection, answer, rest


def attach(target: Target, stdin: int, stdout: int) -> str:
    """Join a terminal to the console of a machine until Ctrl-] or until either side ends.

    Args:
        target: The machine.
        stdin: The terminal to read keys from; in raw mode until the call returns.
        stdout: The terminal to show output on.

    Returns:
        ``left`` if the person pressed Ctrl-], ``closed`` if the console or its run ended, ``gone``
        if the person's terminal ended.

    Raises:
        UsageError, GoneError: See :func:`ask`.
    """
    connection, _, rest = _request(target.process.socket, "attach", target.data["pid"])
    connection.settimeout(None)
    saved = termios.tcgetattr(stdin)
    recent = bytearray()
    try:
        tty.setraw(stdin)
        return _join(connection, stdin, stdout, rest, recent)
    finally:
        connection.close()
        termios.tcsetattr(stdin, termios.TCSANOW, saved)
        restore(bytes(recent), stdout)


def _join(
    connection: socket.socket, stdin: int, stdout: int, first: bytes, recent: bytearray
) -> str:
    poller = select.poll()
    poller.register(stdin, select.POLLIN)
    poller.register(connection, select.POLLIN)
    data = first
    while True:
        while data:
            recent += data
            del recent[:-_RECENT]
            data = data[os.write(stdout, data) :]
        for fd, event in poller.poll():
            if fd == connection.fileno():
                try:
                    data = connection.recv(1 << 16)
                except ConnectionResetError:
                    data = b""
                if not data:
                    return "closed"
                continue
            typed = os.read(stdin, 4096) if event & select.POLLIN else b""
            if not typed:
                return "gone"
            keys, leave, _ = typed.partition(bytes([ESCAPE_KEY]))
            try:
                connection.sendall(keys + leave)
            except (BrokenPipeError, ConnectionResetError):
                return "closed"
            if leave:
                # Not waited for: the process of the test may be stopped.
                return "left"
