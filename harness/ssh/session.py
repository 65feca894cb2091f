"""What is done in a guest over SSH: commands, and files in and out."""

from __future__ import annotations

import contextlib
import io
import select
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import paramiko

from harness.deadline import Deadline, after, of
from harness.errors import (
    CommandError,
    ConnectionLostError,
    HarnessError,
    SshError,
    UsageError,
    WaitTimeoutError,
)
from harness.ssh.connection import Connection

CHUNK: Final = 256 * 1024
LOGGED: Final = 4096
"""Characters of a command's output that its line in the log holds."""

_BOOT_ID: Final = "cat /proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class SshResult:
    """What a command in the guest came to.

    Attributes:
        command: The command.
        stdout: Its output; invalid UTF-8 is replaced.
        stderr: Its errors.
        status: Its exit status; -1 if a signal ended it.
        seconds: How long it took.
    """

    command: str
    stdout: str
    stderr: str
    status: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the status is 0."""
        return self.status == 0

    def check(self) -> SshResult:
        """Return itself.

        Raises:
            CommandError: if the status is not 0.
        """
        if not self.ok:
            raise CommandError(
                f"{self.command!r} ended with status {self.status}",
                evidence=(self.stderr or self.stdout)[-2000:],
            )
        return self


class Ssh(Connection):
    """The SSH side of a machine.

    Args:
        address: Host and port where the guest's port 22 is reached.
        user: Who logs in.
        key: The run's key.
        log: The JSON-lines file.
        host_key: The host key to expect, as ``type base64``; ``None`` pins the first one seen.
        guest: Tells the guest's last output and for how many seconds it has been silent.
    """

    # --- commands ---------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        deadline: Deadline | float | None = None,
        stdin: str | bytes | None = None,
    ) -> SshResult:
        """Run a command in the guest and return what it came to.

        Args:
            command: For the login shell of the user.
            deadline: 60 s on a good host by default; includes connecting.
            stdin: What the command reads, as much of it as it likes; nothing by default.

        Raises:
            ConnectionLostError: if the connection ends in the middle.
            WaitTimeoutError: at the deadline, with what the command has printed.
        """
        output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        limit = of(deadline, 60)
        started = time.monotonic()
        status: int | None = None
        try:
            for name, chunk in self._stream(command, limit, stdin):
                if name == "status":
                    status = int(chunk)
                else:
                    output[name] += chunk
        except HarnessError as error:
            self._write_log({"run": command, "error": str(error)})
            raise
        if status is None:
            raise ConnectionLostError(f"{command!r} ended without a status")
        result = SshResult(
            command,
            output["stdout"].decode(errors="replace"),
            output["stderr"].decode(errors="replace"),
            status,
            time.monotonic() - started,
        )
        self._write_log(
            {
                "run": command,
                "status": result.status,
                "seconds": round(result.seconds, 4),
                "stdout": result.stdout[:LOGGED],
                "stderr": result.stderr[:LOGGED],
            }
        )
        return result

    def stream(self, command: str, *, deadline: Deadline | float | None = None) -> Iterator[str]:
        """Run a command and yield its lines, output and errors together, as they come.

        Raises:
            CommandError: at the end, if its status is not 0.
            ConnectionLostError: if the connection ends in the middle.
            WaitTimeoutError: at the deadline.
        """
        limit = of(deadline, 60)
        started = time.monotonic()
        rest = b""
        status = -1
        for name, chunk in self._stream(command, limit, None):
            if name == "status":
                status = int(chunk)
                continue
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")
        seconds = round(time.monotonic() - started, 4)
        self._write_log({"stream": command, "status": status, "seconds": seconds})
        if status != 0:
            raise CommandError(f"{command!r} ended with status {status}")

    def _stream(
        self, command: str, limit: Deadline, stdin: str | bytes | None
    ) -> Iterator[tuple[str, bytes]]:
        """Yield ``stdout`` and ``stderr`` chunks as they come, then one ``status``."""
        with contextlib.ExitStack() as stack:
            channel = stack.enter_context(self._channel(limit))
            seen = bytearray()
            try:
                with _closed_at(limit, channel):
                    channel.exec_command(command)
                if stdin is None:
                    channel.shutdown_write()
                else:
                    stack.enter_context(_fed(channel, stdin))
                # paramiko's descriptor is readable when there is output, or the end of it.
                poll = select.poll()
                poll.register(channel.fileno(), select.POLLIN)
                while True:
                    ended = channel.exit_status_ready() or channel.closed
                    for chunk in _drain(channel.recv_ready, channel.recv):
                        seen[:] = (seen + chunk)[-2000:]
                        yield "stdout", chunk
                    for chunk in _drain(channel.recv_stderr_ready, channel.recv_stderr):
                        seen[:] = (seen + chunk)[-2000:]
                        yield "stderr", chunk
                    if ended and (channel.eof_received or channel.closed):
                        break
                    if limit.expired:
                        raise self._late(command, limit, seen)
                    poll.poll(limit.poll_timeout())
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._raise_failure()
                if limit.expired:
                    raise self._late(command, limit, seen) from error
                raise self._lost(command, error, seen) from error
            self._raise_failure()
            # RFC 4254 section 6.10: a command that a signal ended sends no exit-status either.
            told = channel.exit_status_ready() and channel.exit_status != -1
            if not told and not self._answers(limit):
                self._raise_failure()
                raise self._lost(command, "the connection ended", seen)
            yield "status", str(channel.exit_status).encode()

    def _late(self, command: str, limit: Deadline, seen: bytearray) -> WaitTimeoutError:
        return WaitTimeoutError(
            f"{command!r} over SSH",
            limit.seconds,
            last_output=seen.decode(errors="replace"),
            evidence=str(self.log_path),
        )

    def _lost(self, command: str, error: object, seen: bytearray) -> ConnectionLostError:
        self.disconnect()
        return ConnectionLostError(
            f"the connection was lost in {command!r}: {error}",
            evidence=seen.decode(errors="replace"),
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

    def put(self, source: Path | bytes | str, target: str, *, mode: int | None = None) -> None:
        """Copy a file, or text or bytes, into the guest over SFTP.

        Raises:
            UsageError: if the local file does not exist.
            SshError: if the guest refuses.
        """
        if isinstance(source, Path) and not source.is_file():
            raise UsageError(f"{source} does not exist")
        with self._sftp(f"put {target}") as sftp:
            if isinstance(source, Path):
                sftp.put(str(source), target)
            else:
                data = source.encode() if isinstance(source, str) else source
                sftp.putfo(io.BytesIO(data), target)
            if mode is not None:
                sftp.chmod(target, mode)

    def get(self, source: str, target: Path | None = None) -> bytes:
        """Copy a file out of the guest over SFTP and return its contents.

        Args:
            source: Path in the guest.
            target: Where to write it as well.

        Raises:
            SshError: if the guest refuses, for example because there is no such file.
        """
        with self._sftp(f"get {source}") as sftp:
            buffer = io.BytesIO()
            sftp.getfo(source, buffer)
        if target is not None:
            target.write_bytes(buffer.getvalue())
        return buffer.getvalue()

    @contextlib.contextmanager
    def _sftp(self, what: str) -> Iterator[paramiko.SFTPClient]:
        limit = after(60)
        started = time.monotonic()
        channel = self._open_channel(limit)
        try:
            channel.settimeout(limit.timeout())
            with _closed_at(limit, channel):
                channel.invoke_subsystem("sftp")
            yield paramiko.SFTPClient(channel)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._raise_failure()
            self._write_log({"sftp": what, "error": str(error)})
            if isinstance(error, TimeoutError) or limit.expired:
                raise WaitTimeoutError(what, limit.seconds) from error
            raise SshError(f"{what}: {error!r}") from error
        finally:
            channel.close()
        self._write_log({"sftp": what, "seconds": round(time.monotonic() - started, 4)})

    def boot_id(self, deadline: Deadline | float | None = None) -> str:
        """Return the guest's boot id, which is new at each boot (``random(4)``)."""
        return self.run(_BOOT_ID, deadline=deadline).check().stdout.strip()


@contextlib.contextmanager
def _closed_at(limit: Deadline, channel: paramiko.Channel) -> Iterator[None]:
    """Close a channel at the deadline: paramiko waits for the answer to a request without one."""

    def close() -> None:
        # It tells the guest, on a connection that may be at its end as well.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.close()

    seconds = limit.timeout()
    timer = threading.Timer(threading.TIMEOUT_MAX if seconds is None else seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _fed(channel: paramiko.Channel, stdin: str | bytes) -> Iterator[None]:
    """Give a command its input, while its output is read; close the channel at the end.

    Who does one after the other waits for ever for a command that prints as much as it reads.
    """
    data = stdin.encode() if isinstance(stdin, str) else stdin

    def feed() -> None:
        # A command that ends without reading it all is no fault, as in a pipe of a shell. A connection
        # that is lost is told by who reads.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.sendall(data)
            channel.shutdown_write()

    feeder = threading.Thread(target=feed, name="ssh-stdin", daemon=True)
    feeder.start()
    try:
        yield
    finally:
        # A thread that waits for the guest to read is woken by it.
        channel.close()
        feeder.join()


def _drain(ready: Any, receive: Any) -> Iterator[bytes]:
    while ready():
        chunk = receive(CHUNK)
        if not chunk:
            return
        yield chunk
