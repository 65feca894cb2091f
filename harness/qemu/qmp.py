"""QEMU's monitor: commands and events, for callers that are not coroutines.

``qemu.qmp`` speaks the protocol on the loop's thread; this facade hands commands over and keeps
events in a short history, so that a wait that begins after its event still sees it. Each message,
in either direction, goes to a JSON-lines log.

A :class:`Qmp` is a leaf of its machine's failure scope: :meth:`Qmp.fail` ends its waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, cast

from qemu.qmp import EventListener, QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.message import Message

from harness.deadline import UNSCALED, Deadline, Scale
from harness.errors import HarnessError, QmpError, WaitTimeoutError
from harness.qemu import loop

HISTORY: Final = 512
"""How many events are kept for waits that begin late."""

ANSWER: Final = 0.5
"""Seconds in which QEMU may still answer a command when the scope fails: the command may be the cause
of the failure, and then its answer is right behind the event."""

# The machine reports a lost monitor with its cause; the library's own log would repeat it.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Event(dict[str, Any]):
    """An event of QEMU, as ``docs/interop/qmp-spec`` defines it: ``event``, ``data``, ``timestamp``."""

    @property
    def name(self) -> str:
        """The event's name, such as ``SHUTDOWN``."""
        return str(self["event"])

    @property
    def data(self) -> dict[str, Any]:
        """The event's members."""
        return cast("dict[str, Any]", self.get("data", {}))

    @property
    def seconds(self) -> float:
        """The time of the event, in seconds of the host's clock since the epoch."""
        when = self["timestamp"]
        return float(when["seconds"]) + float(when["microseconds"]) / 1e6


class _LoggedClient(QMPClient):
    """The protocol; each message is written to a log as it passes."""

    def __init__(self, name: str, log: TextIO) -> None:
        super().__init__(name)
        self._harness_log = log

    def _write(self, direction: str, message: Message) -> None:
        if not self._harness_log.closed:
            line = {"t": round(time.time(), 6), direction: dict(message)}
            # A full disk must not end the session; the console's log raises it.
            with contextlib.suppress(OSError):
                self._harness_log.write(json.dumps(line) + "\n")
                self._harness_log.flush()

    def _cb_outbound(self, msg: Message) -> Message:
        self._write("send", msg)
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        self._write("receive", msg)
        return msg


class Answer:
    """The answer to a command that was sent: :meth:`wait` returns it.

    Whoever sends a command waits for its answer.
    """

    def __init__(
        self,
        qmp: Qmp,
        command: str,
        arguments: dict[str, Any] | None,
        future: concurrent.futures.Future[object],
    ) -> None:
        self._qmp = qmp
        self._command = command
        self._arguments = arguments
        self._future = future

    def wait(self, deadline: Deadline | None = None) -> Any:
        """Return the command's result.

        Args:
            deadline: 30 s on a good host by default.

        Raises:
            QmpError, WaitTimeoutError, HarnessError: As :meth:`Qmp.execute`.
        """
        qmp, command = self._qmp, self._command
        limit = deadline or qmp._scale.after(30)
        try:
            return loop.result(self._future, limit)
        except TimeoutError as error:
            raise WaitTimeoutError(f"monitor command {command}", limit) from error
        except (QMPError, concurrent.futures.CancelledError) as error:
            if qmp._failure is not None:
                raise qmp._failure from error
            raise QmpError(f"monitor command {command} {self._arguments or ''}: {error}") from error
        finally:
            with qmp._changed:
                qmp._pending.discard(self._future)


class Qmp:
    """A connected monitor.

    Args:
        sock: The socket whose other end QEMU has.
        name: The machine's name.
        log: The JSON-lines file that takes all messages.
        on_event: Called for each event, from the loop's thread; must not block.
        scale: The machine's scale of deadlines.

    Raises:
        OSError: The log cannot be created.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        log: Path,
        on_event: Callable[[Event], None] | None = None,
        scale: Scale = UNSCALED,
    ) -> None:
        self.name = name
        self._scale = scale
        self._sock = sock
        self._log = log.open("a", encoding="utf-8")
        self._on_event = on_event
        self._changed = threading.Condition()
        self._events: deque[tuple[int, Event]] = deque(maxlen=HISTORY)
        self._count = 0
        self._failure: HarnessError | None = None
        self._pending: set[concurrent.futures.Future[object]] = set()
        self._client: QMPClient | None = None
        self._pump: asyncio.Task[None] | None = None
        self._still = threading.RLock()

    def connect(self, deadline: Deadline) -> None:
        """Negotiate the session.

        Raises:
            QmpError: QEMU hung up, as it does when it refuses its arguments.
            WaitTimeoutError: The deadline passed.
        """

        async def negotiate() -> None:
            client = _LoggedClient(self.name, self._log)
            listener = EventListener()
            client.register_listener(listener)
            await client.connect(self._sock)
            self._client = client
            self._pump = asyncio.get_running_loop().create_task(self._forward(listener))

        try:
            loop.run(negotiate(), deadline)
        except TimeoutError as error:
            raise WaitTimeoutError("QEMU's monitor", deadline) from error
        except (QMPError, OSError, EOFError) as error:
            raise QmpError(f"no session with QEMU's monitor: {error}") from error

    async def _forward(self, listener: EventListener) -> None:
        async for message in listener:
            event = Event(message)
            with self._changed:
                self._count += 1
                self._events.append((self._count, event))
                self._changed.notify_all()
            if self._on_event is not None:
                self._on_event(event)

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Run a command and return its result.

        A failure of the scope ends a command that QEMU does not answer soon after it. A command that is
        sent after the failure still goes through, so that evidence can be taken from a machine that has
        failed.

        Args:
            command: The command's name, as QEMU's QMP reference has it.
            arguments: Its arguments.
            deadline: 30 s on a good host by default.

        Raises:
            QmpError: QEMU refused the command, or the monitor went away.
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        return self.send(command, arguments).wait(deadline)

    def send(self, command: str, arguments: dict[str, Any] | None = None) -> Answer:
        """Send a command, so that several machines can have one before the first answers.

        Args:
            command: As for :meth:`execute`.
            arguments: As for :meth:`execute`.

        Raises:
            QmpError: The monitor is not connected.
        """
        client = self._client
        if client is None:
            raise QmpError(f"monitor command {command}: not connected")
        with self._changed:
            # Together, or a failure that comes between them would not end this command.
            future = loop.submit(client.execute(command, arguments))
            self._pending.add(future)
        return Answer(self, command, arguments, future)

    def human(self, command: str) -> str:
        """Run a command of the human monitor, which reports some things that QMP does not."""
        return str(self.execute("human-monitor-command", {"command-line": command}))

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Keep other threads from stopping the guest by :meth:`standing_still` in the block."""
        with self._still:
            yield

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop the guest's CPUs in the block; after it they run again if they ran before.

        One block at a time: another thread's waits for the end of this one.
        """
        with self.undisturbed():
            ran = self.execute("query-status")["running"]
            self.execute("stop")
            try:
                yield
            finally:
                if ran:
                    self.execute("cont")

    def mark(self) -> int:
        """Return the point in the stream of events from which a later wait can look."""
        with self._changed:
            return self._count

    def seen(self, names: Collection[str], since: int = 0) -> list[Event]:
        """Return the events of these names after ``since`` that are still in the history."""
        with self._changed:
            return [
                event for number, event in self._events if number > since and event.name in names
            ]

    def wait(
        self,
        names: Collection[str],
        deadline: Deadline,
        *,
        since: int | None = None,
        accept: Callable[[Event], bool] = lambda event: True,
    ) -> Event:
        """Return the first event of one of these names after ``since`` (default: now).

        Args:
            names: The events' names.
            deadline: When to give up.
            since: A :meth:`mark`.
            accept: Returns whether an event with one of the names ends the wait.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope, as soon as it fails.
        """
        with self._changed:
            start = self._count if since is None else since
            while True:
                for number, event in self._events:
                    if number > start and event.name in names and accept(event):
                        return event
                if self._failure is not None:
                    raise self._failure
                if deadline.expired:
                    raise WaitTimeoutError(f"QEMU's event {' or '.join(names)}", deadline)
                self._changed.wait(deadline.timeout())

    def fail(self, error: HarnessError) -> None:
        """End all waits, present and later, with ``error``; the first error stays."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
            pending = list(self._pending)
        for answer in pending:
            loop.later(ANSWER, answer.cancel)

    def close(self) -> None:
        """End the session and close the log."""

        async def disconnect() -> None:
            if self._pump is not None:
                self._pump.cancel()
            if self._client is not None:
                await self._client.disconnect()

        try:
            loop.run(disconnect(), UNSCALED.after(5))
        except (QMPError, OSError, EOFError, TimeoutError):
            pass  # The other end has gone first.
        finally:
            self._sock.close()
            with contextlib.suppress(OSError):
                self._log.close()
