"""Commands in a guest over SSH, and files copied into and out of it."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import paramiko

from harness.deadline import SUDDEN, Deadline, Limit
from harness.errors import (
    CommandError,
    ConnectionLostError,
    HarnessError,
    SshError,
    UsageError,
    WaitTimeoutError,
)
from harness.result import Result
from harness.ssh.connection import Connection, closed_at

_CHUNK: Final = 256 * 1024

_ROUND: Final = 8
"""Chunks that are read of one stream before the other has its turn."""

_LOGGED: Final = 4096
"""Characters of a command's output that its line in the log holds."""

_SECONDS: Final = 60.0

_LONGEST_LINE: Final = 1024 * 1024
"""Characters after which :meth:`Ssh.stream` yields what there is of a line."""

_QUIET: Final = 0.5
_AFTER: Final = 2.0
"""Seconds on a good host that a command's output may stay open after its exit status: without output,
and in all. OpenSSH sends the status when the command ends, then the rest of its output, and the end of
the output when no process has it open any more (``session_exit_message`` in its ``session.c``)."""

_HELD: Final = (
    "a process that the command started still holds its output open; what that prints is lost."
    " Redirect it: PROGRAM >/dev/null 2>&1 &"
)

_BOOT_ID: Final = "cat /proc/sys/kernel/random/boot_id"


class Ssh(Connection):
    """The SSH session of a machine; a context manager that closes it.

    It connects when it is first used, and again whenever the connection is lost. Each method that
    waits takes a ``deadline``: a :class:`~harness.deadline.Deadline`, or seconds on a good host,
    which the scale stretches, or ``None`` for the method's default.

    Args:
        address: The host and port on which the guest's port 22 is forwarded.
        user: The user to log in as.
        key: The key of the run.
        log: The file of the JSON-lines log.
        name: The name of the machine, for results and messages.
        host_key: The pinned host key as ``type base64``; ``None`` pins the first one.
        guest: Returns the last output of the guest's console, the seconds since, and remarks about
            it; for messages.
        scale: The scale of the machine's deadlines.
        waiting: Called with what a wait waits for and its deadline; returns the context of the wait.
    """

    # --- commands ---------------------------------------------------------------------------

    def run(
        self,
        command: str,
        deadline: Limit = None,
        *,
        stdin: str | bytes | None = None,
    ) -> Result:
        """Run a command in the login shell of the user and return its result.

        The command ends with its shell. A process in the background that holds its output open does not
        keep it from ending: the output is read until it has been quiet for 0.5 s on a good host, for 2 s
        at most, and the result's hint says so.

        Args:
            command: The shell command.
            deadline: 60 s on a good host by default; it includes the time to connect.
            stdin: The input of the command, which need not read all of it; ``None`` for none.

        Raises:
            ConnectionLostError: The connection ended before the command did.
            WaitTimeoutError: The deadline passed; the error has the output so far.
            HarnessError: As :meth:`connect` does.
        """
        limit = self._scale.limit(deadline, _SECONDS)
        started = time.monotonic()
        source = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            with self._waiting(f"run over SSH: {command[:200]}", limit):
                stdin_file = None if source is None else io.BytesIO(source)
                output = self._collect(command, limit, stdin_file)
        except HarnessError as error:
            self._write_log({"run": command, "error": str(error)})
            raise
        result = Result(
            output.stdout.decode(errors="replace"),
            output.stderr.decode(errors="replace"),
            output.status,
            time.monotonic() - started,
            command,
            self.name,
            hint=_HELD if output.held else "",
        )
        entry = {
            "run": command,
            "status": result.status,
            "seconds": round(result.seconds, 4),
            "stdout": result.stdout[:_LOGGED],
            "stderr": result.stderr[:_LOGGED],
        }
        self._write_log({**entry, "hint": result.hint} if result.hint else entry)
        return result

    def stream(self, command: str, deadline: Limit = None) -> Iterator[str]:
        """Run a command and yield each line of its output and errors when it arrives.

        A line of more than 1 MiB arrives in pieces. The command ends as that of :meth:`run` does.

        Args:
            command: The shell command.
            deadline: 60 s on a good host by default; it includes the time to connect.

        Raises:
            CommandError: The command ended with an exit status other than 0.
            ConnectionLostError: The connection ended before the command did.
            WaitTimeoutError: The deadline passed; the error has the output so far.
            HarnessError: As :meth:`connect` does.
        """
        limit = self._scale.limit(deadline, _SECONDS)
        started = time.monotonic()
        output = _Output()
        lines = {"stdout": _Lines(), "stderr": _Lines()}
        with self._waiting(f"stream over SSH: {command[:200]}", limit):
            for name, chunk in self._stream(command, limit, None, output):
                yield from lines[name].feed(chunk)
        for stream in lines.values():
            yield from stream.end()
        seconds = round(time.monotonic() - started, 4)
        entry = {"stream": command, "status": output.status, "seconds": seconds}
        self._write_log({**entry, "hint": _HELD} if output.held else entry)
        if output.status != 0:
            raise CommandError(
                f"{command!r} ended with status {output.status}", hint=_HELD if output.held else ""
            )

    def _collect(self, command: str, limit: Deadline, stdin: BinaryIO | None) -> _Output:
        """Run a command and return all its output."""
        output = _Output()
        chunks = {"stdout": output.stdout, "stderr": output.stderr}
        for name, chunk in self._stream(command, limit, stdin, output):
            chunks[name] += chunk
        return output

    def _stream(
        self, command: str, limit: Deadline, stdin: BinaryIO | None, output: _Output
    ) -> Iterator[tuple[str, bytes]]:
        """Yield ``stdout`` and ``stderr`` with chunks of output; set the output's other fields."""
        with contextlib.ExitStack() as stack:
            channel = stack.enter_context(self._channel(limit))
            recent = bytearray()
            status = channel.status_event = stack.enter_context(_Event())
            quiet = last = None
            streams = (
                ("stdout", channel.recv_ready, channel.recv),
                ("stderr", channel.recv_stderr_ready, channel.recv_stderr),
            )
            try:
                # paramiko waits for the answer to a request without limit.
                with closed_at(limit, channel.close):
                    channel.exec_command(command)
                if stdin is None:
                    channel.shutdown_write()
                else:
                    stack.enter_context(_fed(channel, stdin))
                # The descriptor of paramiko is readable when output or its end has arrived.
                poll = select.poll()
                poll.register(channel.fileno(), select.POLLIN)
                poll.register(status.fd, select.POLLIN)
                while True:
                    # Checked before the drain: a server may send the status before the last output.
                    has_status = channel.exit_status_ready()
                    ended = channel.closed or (has_status and channel.eof_received)
                    more = False
                    for name, ready, receive in streams:
                        for chunk in _drain(ready, receive):
                            more = True
                            recent[:] = (recent + chunk)[-2000:]
                            yield name, chunk
                    if ended and not more:
                        break
                    if has_status and not ended:
                        if last is None:
                            poll.unregister(status.fd)
                            last = self._scale.after(_AFTER)
                        if quiet is None or more:
                            quiet = self._scale.after(_QUIET)
                        if quiet.expired or last.expired or limit.expired:
                            output.held = True
                            break
                    elif limit.expired and not ended:
                        raise self._late(command, limit, recent)
                    if not more:
                        limits = [each for each in (limit, quiet, last) if each is not None]
                        waits = [each.poll_timeout() for each in limits]
                        poll.poll(min((each for each in waits if each is not None), default=None))
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._raise_failure()
                if limit.expired:
                    raise self._late(command, limit, recent) from error
                raise self._lost(repr(command), error, limit, recent) from error
            if channel.exit_status == -1 or not (channel.eof_received or output.held):
                self._raise_failure()
            # RFC 4254, section 6.10: a command that a signal ended sends no exit-status either.
            if channel.exit_status == -1 and not self._answers(limit):
                self._raise_failure()
                raise self._lost(repr(command), "the connection ended", limit, recent)
            output.status = channel.exit_status

    def _late(self, command: str, limit: Deadline, recent: bytearray) -> WaitTimeoutError:
        return WaitTimeoutError(
            f"{command!r} over SSH",
            limit,
            last_output=recent.decode(errors="replace"),
            evidence=str(self.log_path),
        )

    def _lost(
        self, action: str, error: object, limit: Deadline, recent: bytes | bytearray = b""
    ) -> ConnectionLostError:
        self.disconnect()
        return ConnectionLostError(
            f"the connection was lost in {action}: {error}",
            evidence=recent.decode(errors="replace") or str(self.log_path),
            # A guest that gets no CPU, or its server's own time limits, end connections as well.
            pressure=self._scale.pressure(max(SUDDEN, limit.elapsed)),
            hint="did the guest reboot? use machine.reboot() for a command that ends the session",
        )

    @contextlib.contextmanager
    def _channel(self, limit: Deadline) -> Iterator[paramiko.Channel]:
        channel = self._open_channel(limit)
        try:
            yield channel
        finally:
            channel.close()

    # --- files ------------------------------------------------------------------------------

    def put(
        self,
        source: Path | bytes | str,
        target: str,
        deadline: Limit = None,
        *,
        mode: int | None = None,
    ) -> None:
        """Copy a file, bytes or text into the guest: over SFTP, or by ``cat`` where that is missing.

        Args:
            source: The path of a local file, or the contents: bytes, or text, which becomes UTF-8.
            target: The path in the guest.
            deadline: 60 s on a good host by default; it includes the time to connect.
            mode: The permissions of the file in the guest; ``None`` leaves them to the guest.

        Raises:
            UsageError: The local file does not exist, or cannot be read.
            SshError: The guest refused the copy.
            ConnectionLostError: The connection ended before the copy did.
            WaitTimeoutError: The deadline passed.
            HarnessError: As :meth:`connect` does.
        """
        if isinstance(source, Path) and not source.is_file():
            raise UsageError(f"{source} does not exist")
        data = source.encode() if isinstance(source, str) else source
        limit = self._scale.limit(deadline, _SECONDS)
        with (
            contextlib.closing(_opened(data)) as file,
            self._waiting(f"put {target}", limit),
            self._copying(f"put {target}", limit) as sftp,
        ):
            if sftp is None:
                command = f"cat > {shlex.quote(target)}"
                if mode is not None:
                    command += f" && chmod {mode:o} {shlex.quote(target)}"
                self._copy_by(command, f"put {target}", limit, file)
                return
            sftp.putfo(file, target)
            if mode is not None:
                sftp.chmod(target, mode)

    def get(self, source: str, target: Path | str | None = None, deadline: Limit = None) -> bytes:
        """Copy a file out of the guest and return its contents; as :meth:`put` does.

        Args:
            source: The path in the guest.
            target: A local path to write the contents to as well.
            deadline: 60 s on a good host by default; it includes the time to connect.

        Raises:
            SshError: The guest refused the copy, for example because the file does not exist.
            ConnectionLostError: The connection ended before the copy did.
            WaitTimeoutError: The deadline passed.
            HarnessError: As :meth:`connect` does.
        """
        limit = self._scale.limit(deadline, _SECONDS)
        with (
            self._waiting(f"get {source}", limit),
            self._copying(f"get {source}", limit) as sftp,
        ):
            if sftp is None:
                command = f"cat -- {shlex.quote(source)}"
                content = bytes(self._copy_by(command, f"get {source}", limit, None))
            else:
                buffer = io.BytesIO()
                sftp.getfo(source, buffer)
                content = buffer.getvalue()
        if target is not None:
            Path(target).write_bytes(content)
        return content

    @contextlib.contextmanager
    def _copying(self, action: str, limit: Deadline) -> Iterator[paramiko.SFTPClient | None]:
        """Yield a client of the guest's SFTP server; ``None`` if the guest has none."""
        started = time.monotonic()
        channel = self._open_channel(limit)
        try:
            with closed_at(limit, channel.close):
                sftp = None
                try:
                    channel.invoke_subsystem("sftp")
                    sftp = paramiko.SFTPClient(channel)
                except (OSError, EOFError, paramiko.SSHException):
                    # The server refuses the subsystem, or its program is missing: then the channel
                    # ends. So it does with the connection.
                    if limit.expired or not self._answers(limit):
                        raise
                yield sftp
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._raise_failure()
            self._write_log({"sftp": action, "error": str(error)})
            if limit.expired:
                raise WaitTimeoutError(action, limit) from error
            if not self._answers(limit):
                raise self._lost(action, repr(error), limit) from error
            raise SshError(f"{action}: {error!r}") from error
        finally:
            channel.close()
        by = "cat" if sftp is None else "sftp"
        self._write_log({by: action, "seconds": round(time.monotonic() - started, 4)})

    def _copy_by(
        self, command: str, action: str, limit: Deadline, stdin: BinaryIO | None
    ) -> bytearray:
        output = self._collect(command, limit, stdin)
        if output.status:
            words = output.stderr.decode(errors="replace").strip()
            raise SshError(
                f"{action}: status {output.status}",
                evidence=words,
                hint="the guest has no SFTP server, so this was copied by cat",
            )
        return output.stdout

    def boot_id(self, deadline: Limit = None) -> str:
        """Return the boot id of the guest, which is new at each boot (``random(4)``).

        Args:
            deadline: 60 s on a good host by default; it includes the time to connect.

        Raises:
            HarnessError: As :meth:`run` does.
        """
        return self.run(_BOOT_ID, deadline=deadline).check().stdout.strip()


def _opened(source: Path | bytes) -> BinaryIO:
    """Return a local file, or contents as a file.

    Raises:
        UsageError: The file cannot be opened.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _fed(channel: paramiko.Channel, stdin: BinaryIO) -> Iterator[None]:
    """Write the input of a command from a thread; close the channel at the end of the block.

    Writing all input before reading output deadlocks when the command produces as much as it
    consumes.

    Raises:
        UsageError: The input cannot be read; the command has seen a part of it.
    """
    failures: list[OSError] = []

    def read() -> bytes:
        try:
            return stdin.read(_CHUNK)
        except OSError as error:
            failures.append(error)
            raise EOFError from error

    def feed() -> None:
        # As in a shell's pipe, a command may end before it has read all input. The reader of the
        # output reports a lost connection.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            while chunk := read():
                channel.sendall(chunk)
            channel.shutdown_write()
        if failures:
            channel.close()

    feeder = threading.Thread(target=feed, name="ssh-stdin", daemon=True)
    feeder.start()
    try:
        yield
    finally:
        # This wakes the thread if it waits for the guest to read.
        channel.close()
        feeder.join()
    if failures:
        raise UsageError(f"the input cannot be read: {failures[0]}") from failures[0]


def _drain(ready: Any, receive: Any) -> Iterator[bytes]:
    # Not until there is no more: a command that prints without end must reach its deadline.
    for _ in range(_ROUND):
        if not ready():
            return
        chunk = receive(_CHUNK)
        if not chunk:
            return
        yield chunk


@dataclass(slots=True)
class _Output:
    """What a command has left behind.

    Attributes:
        stdout: Its standard output.
        stderr: Its standard error.
        status: Its exit status; -1 if a signal ended it.
        held: Whether the output was still open when it was no longer read.
    """

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    status: int = -1
    held: bool = False


class _Lines:
    """Makes lines of chunks of one stream, in linear time and bounded memory."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes, *, final: bool = False) -> Iterator[str]:
        """Yield the lines that end in the chunk, and what there is of one that is too long."""
        first, *others = self._decoder.decode(chunk, final).split("\n")
        self._add(first)
        for other in others:
            yield self._take()
            self._add(other)
        if self._size >= _LONGEST_LINE:
            yield self._take()

    def end(self) -> Iterator[str]:
        """Yield the last line, if it has not ended."""
        yield from self.feed(b"", final=True)
        if self._size:
            yield self._take()

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)

    def _take(self) -> str:
        line = "".join(self._parts)
        self._parts, self._size = [], 0
        return line


class _Event(threading.Event):
    """An event that also makes a descriptor readable, for ``poll(2)``; a context manager closes it."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = threading.Lock()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        """Set the event; another thread of paramiko may do so after the end of the command."""
        super().set()
        with self._closing:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._closing:
            os.close(self.fd)
            self.fd = -1
