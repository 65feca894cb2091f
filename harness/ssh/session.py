"""Commands in a guest over SSH, and files copied into and out of it."""

from __future__ import annotations

import contextlib
import io
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import paramiko

from harness.deadline import Deadline, Limit
from harness.errors import (
    CommandError,
    ConnectionLostError,
    HarnessError,
    SshError,
    UsageError,
    WaitTimeoutError,
)
from harness.result import Result
from harness.ssh.connection import Connection

_CHUNK: Final = 256 * 1024

_LOGGED: Final = 4096
"""Characters of a command's output that its line in the log holds."""

_SECONDS: Final = 60.0

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
        guest: Returns the last output of the guest's console, and the seconds since; for messages.
        scale: The scale of the machine's deadlines.
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

        Args:
            command: The shell command.
            deadline: 60 s on a good host by default; it includes the time to connect.
            stdin: The input of the command, which need not read all of it; ``None`` for none.

        Raises:
            ConnectionLostError: The connection ended before the command did.
            WaitTimeoutError: The deadline passed; the error has the output so far.
            HarnessError: As :meth:`connect` does.
        """
        output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        limit = self._scale.limit(deadline, _SECONDS)
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
        result = Result(
            output["stdout"].decode(errors="replace"),
            output["stderr"].decode(errors="replace"),
            status,
            time.monotonic() - started,
            command,
            self.name,
        )
        self._write_log(
            {
                "run": command,
                "status": result.status,
                "seconds": round(result.seconds, 4),
                "stdout": result.stdout[:_LOGGED],
                "stderr": result.stderr[:_LOGGED],
            }
        )
        return result

    def stream(self, command: str, deadline: Limit = None) -> Iterator[str]:
        """Run a command and yield each line of its output and errors when it arrives.

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
        """Yield ``stdout`` and ``stderr`` with chunks of output, then ``status`` with the number."""
        with contextlib.ExitStack() as stack:
            channel = stack.enter_context(self._channel(limit))
            recent = bytearray()
            try:
                with _closed_at(limit, channel):
                    channel.exec_command(command)
                if stdin is None:
                    channel.shutdown_write()
                else:
                    stack.enter_context(_fed(channel, stdin))
                # The descriptor of paramiko is readable when output or its end has arrived.
                poll = select.poll()
                poll.register(channel.fileno(), select.POLLIN)
                while True:
                    # Checked before the drain: a server may send the status before the last output.
                    ended = channel.closed or (channel.exit_status_ready() and channel.eof_received)
                    for chunk in _drain(channel.recv_ready, channel.recv):
                        recent[:] = (recent + chunk)[-2000:]
                        yield "stdout", chunk
                    for chunk in _drain(channel.recv_stderr_ready, channel.recv_stderr):
                        recent[:] = (recent + chunk)[-2000:]
                        yield "stderr", chunk
                    if ended:
                        break
                    if limit.expired:
                        raise self._late(command, limit, recent)
                    poll.poll(limit.poll_timeout())
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._raise_failure()
                if limit.expired:
                    raise self._late(command, limit, recent) from error
                raise self._lost(command, error, recent) from error
            if channel.exit_status == -1 or not channel.eof_received:
                self._raise_failure()
            # RFC 4254, section 6.10: a command that a signal ended sends no exit-status either.
            if channel.exit_status == -1 and not self._answers(limit):
                self._raise_failure()
                raise self._lost(command, "the connection ended", recent)
            yield "status", str(channel.exit_status).encode()

    def _late(self, command: str, limit: Deadline, recent: bytearray) -> WaitTimeoutError:
        return WaitTimeoutError(
            f"{command!r} over SSH",
            limit.seconds,
            last_output=recent.decode(errors="replace"),
            evidence=str(self.log_path),
        )

    def _lost(self, command: str, error: object, recent: bytearray) -> ConnectionLostError:
        self.disconnect()
        return ConnectionLostError(
            f"the connection was lost in {command!r}: {error}",
            evidence=recent.decode(errors="replace"),
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
        """Copy a file, bytes or text into the guest over SFTP.

        Args:
            source: The path of a local file, or the contents: bytes, or text, which becomes UTF-8.
            target: The path in the guest.
            deadline: 60 s on a good host by default; it includes the time to connect.
            mode: The permissions of the file in the guest; ``None`` leaves them to the guest.

        Raises:
            UsageError: The local file does not exist.
            SshError: The guest refused the copy.
            WaitTimeoutError: The deadline passed.
            HarnessError: As :meth:`connect` does.
        """
        if isinstance(source, Path) and not source.is_file():
            raise UsageError(f"{source} does not exist")
        with self._sftp(f"put {target}", deadline) as sftp:
            if isinstance(source, Path):
                sftp.put(str(source), target)
            else:
                data = source.encode() if isinstance(source, str) else source
                sftp.putfo(io.BytesIO(data), target)
            if mode is not None:
                sftp.chmod(target, mode)

    def get(self, source: str, target: Path | None = None, deadline: Limit = None) -> bytes:
        """Copy a file out of the guest over SFTP and return its contents.

        Args:
            source: The path in the guest.
            target: A local path to write the contents to as well.
            deadline: 60 s on a good host by default; it includes the time to connect.

        Raises:
            SshError: The guest refused the copy, for example because the file does not exist.
            WaitTimeoutError: The deadline passed.
            HarnessError: As :meth:`connect` does.
        """
        with self._sftp(f"get {source}", deadline) as sftp:
            buffer = io.BytesIO()
            sftp.getfo(source, buffer)
        if target is not None:
            target.write_bytes(buffer.getvalue())
        return buffer.getvalue()

    @contextlib.contextmanager
    def _sftp(self, action: str, deadline: Limit) -> Iterator[paramiko.SFTPClient]:
        limit = self._scale.limit(deadline, _SECONDS)
        started = time.monotonic()
        channel = self._open_channel(limit)
        try:
            channel.settimeout(limit.timeout())
            with _closed_at(limit, channel):
                channel.invoke_subsystem("sftp")
            yield paramiko.SFTPClient(channel)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._raise_failure()
            self._write_log({"sftp": action, "error": str(error)})
            if isinstance(error, TimeoutError) or limit.expired:
                raise WaitTimeoutError(action, limit.seconds) from error
            raise SshError(f"{action}: {error!r}") from error
        finally:
            channel.close()
        self._write_log({"sftp": action, "seconds": round(time.monotonic() - started, 4)})

    def boot_id(self, deadline: Limit = None) -> str:
        """Return the boot id of the guest, which is new at each boot (``random(4)``).

        Args:
            deadline: 60 s on a good host by default; it includes the time to connect.

        Raises:
            HarnessError: As :meth:`run` does.
        """
        return self.run(_BOOT_ID, deadline=deadline).check().stdout.strip()


@contextlib.contextmanager
def _closed_at(limit: Deadline, channel: paramiko.Channel) -> Iterator[None]:
    """Close a channel at the deadline: paramiko waits for the answer to a request without limit."""

    def close() -> None:
        # close() sends a message to the guest, on a connection that may have ended.
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
    """Write the input of a command from a thread; close the channel at the end of the block.

    Writing all input before reading output deadlocks when the command produces as much as it
    consumes.
    """
    data = stdin.encode() if isinstance(stdin, str) else stdin

    def feed() -> None:
        # As in a shell's pipe, a command may end before it has read all input. The reader of the
        # output reports a lost connection.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.sendall(data)
            channel.shutdown_write()

    feeder = threading.Thread(target=feed, name="ssh-stdin", daemon=True)
    feeder.start()
    try:
        yield
    finally:
        # This wakes the thread if it waits for the guest to read.
        channel.close()
        feeder.join()


def _drain(ready: Any, receive: Any) -> Iterator[bytes]:
    while ready():
        chunk = receive(_CHUNK)
        if not chunk:
            return
        yield chunk
