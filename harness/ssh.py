"""SSH to one guest: a connection that is kept, and made again after a reboot.

paramiko speaks the protocol. The run's own key logs in; the host key that the guest shows first is
pinned. Each command is one line of a JSON-lines log.

There is no event on the host for "sshd now listens": QEMU's user-mode network accepts a forwarded
connection at once, whatever the guest does. So :meth:`Ssh.connect` tries until its deadline; between
tries it waits on an event that the machine's end sets, never in a plain sleep.
"""

from __future__ import annotations

import contextlib
import io
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import paramiko

from harness.deadline import Deadline, after, of
from harness.errors import (
    CommandError,
    ConnectionLostError,
    HarnessError,
    HostKeyChangedError,
    SshError,
    SshKeyRefusedError,
    UsageError,
    WaitTimeoutError,
)
from harness.keys import KeyPair

CHUNK: Final = 256 * 1024
LOGGED: Final = 4096
"""Characters of a command's output that its line in the log holds."""

_PACE_FIRST: Final = 0.05
_PACE_MOST: Final = 1.0
_PATIENCE_FIRST: Final = 1.0
_PATIENCE_MOST: Final = 15.0
_BOOT_ID: Final = "cat /proc/sys/kernel/random/boot_id"

# Failures reach the caller as exceptions; paramiko's thread would print them a second time.
paramiko.util.get_logger("paramiko").setLevel("CRITICAL")


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


class Ssh:
    """The SSH side of a machine.

    Args:
        address: Host and port where the guest's port 22 is reached.
        user: Who logs in.
        key: The run's key.
        log: The JSON-lines file.
        host_key: The host key to expect, as ``type base64``; ``None`` pins the first one seen.
        guest: Tells the guest's last output and for how many seconds it has been silent.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        user: str,
        key: KeyPair,
        log: Path,
        host_key: str | None = None,
        guest: Callable[[], tuple[str, float]] | None = None,
    ) -> None:
        self.address = address
        self.user = user
        self.key = key
        self.host_key = host_key
        self.log_path = log
        self._guest = guest
        self._log_lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: HarnessError | None = None
        self._transport: paramiko.Transport | None = None
        self._greeting: socket.socket | None = None

    def __enter__(self) -> Ssh:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- the connection ---------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a session is up, as far as this side knows."""
        return self._transport is not None and self._transport.is_active()

    def connect(self, deadline: Deadline | float | None = None) -> Ssh:
        """Log in, waiting for the guest's server; do nothing if a session is up.

        Args:
            deadline: 30 s on a good host by default.

        Raises:
            SshKeyRefusedError: if the guest refuses the key.
            HostKeyChangedError: if the host key is not the pinned one.
            WaitTimeoutError: at the deadline; says how the last try failed.
            HarnessError: what the machine failed with, as soon as it fails.
        """
        limit = of(deadline, 30)
        started = time.monotonic()
        pace, patience = _PACE_FIRST, _PATIENCE_FIRST
        tries = 0
        why = "no try"
        while True:
            self._raise_failure()
            if self.connected:
                return self
            tries += 1
            try:
                self._try_connect(limit, patience)
            except (OSError, EOFError, paramiko.SSHException) as error:
                why = str(error) or type(error).__name__
            else:
                self._write_log(
                    {"connect": self.user, "tries": tries, "seconds": time.monotonic() - started}
                )
                return self
            if limit.expired:
                self._raise_failure()
                self._write_log({"connect": self.user, "tries": tries, "error": why})
                last_output, silent = self._guest() if self._guest is not None else ("", None)
                raise WaitTimeoutError(
                    f"an SSH login of {self.user} ({tries} tries, the last: {why})",
                    limit.seconds,
                    last_output=last_output,
                    silent=silent,
                    evidence=str(self.log_path),
                    hint="see serial.log for what the guest's sshd or network said",
                )
            self._stop.wait(min(pace, limit.remaining()))
            pace = min(pace * 1.5, _PACE_MOST)
            patience = min(patience * 1.5, _PATIENCE_MOST)

    def _try_connect(self, limit: Deadline, patience: float) -> None:
        # A guest whose network is not up yet leaves the connection open and silent. A try gives up
        # early, so that a fresh connection meets the server soon after it starts; later tries have
        # more patience, for a server that is slow to speak.
        patience = max(0.1, min(patience, limit.remaining()))
        sock = socket.create_connection(self.address, timeout=patience)
        self._greeting = sock
        try:
            sock.settimeout(patience)
            self._raise_failure()
            if not sock.recv(4, socket.MSG_PEEK):
                raise ConnectionResetError("the guest closed the connection")
            transport = paramiko.Transport(sock)
        except BaseException:
            sock.close()
            raise
        finally:
            self._greeting = None
        try:
            # Emulated guests take long over their side of the key exchange.
            transport.banner_timeout = transport.handshake_timeout = max(1.0, limit.remaining())
            transport.auth_timeout = max(1.0, limit.remaining())
            transport.start_client(timeout=max(1.0, limit.remaining()))
            self._check_host_key(transport)
            self._authenticate(transport)
        except BaseException:
            transport.close()
            raise
        self._transport = transport

    def _check_host_key(self, transport: paramiko.Transport) -> None:
        shown = transport.get_remote_server_key()
        text = f"{shown.get_name()} {shown.get_base64()}"
        if self.host_key is None:
            self.host_key = text
        elif self.host_key != text:
            raise HostKeyChangedError(
                f"the host key of {self.address[0]}:{self.address[1]} has changed",
                evidence=f"pinned: {self.host_key}\nshown:  {text}",
                hint="a reinstalled system has new host keys: call ssh.forget_host_key() where"
                " the scenario expects that",
            )

    def _authenticate(self, transport: paramiko.Transport) -> None:
        try:
            transport.auth_publickey(self.user, self.key.paramiko())
        except paramiko.AuthenticationException as error:
            raise SshKeyRefusedError(
                f"the guest refused the key of {self.user}",
                evidence=f"{error}; key {self.key.public}",
                hint="was the key seeded? see authorized_keys of that user on the console",
            ) from error

    def forget_host_key(self) -> None:
        """Accept and pin the next host key, and end the session."""
        self.host_key = None
        self.disconnect()

    def disconnect(self) -> None:
        """End the session; the next command makes a new one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def close(self) -> None:
        """End the session and all waits."""
        self._stop.set()
        self.disconnect()

    def fail(self, error: HarnessError) -> None:
        """End all waits, present and later, with ``error``: the machine is lost."""
        self._failure = self._failure or error
        self._stop.set()
        greeting, transport = self._greeting, self._transport
        if greeting is not None:
            with contextlib.suppress(OSError):
                greeting.shutdown(socket.SHUT_RDWR)
        if transport is not None:
            transport.close()

    def recover(self) -> None:
        """Forget a failure that the scenario provoked."""
        self._failure = None
        self._stop.clear()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

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
            stdin: What the command reads; nothing by default.

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
        with self._channel(limit) as channel:
            seen = bytearray()
            try:
                channel.exec_command(command)
                if stdin is not None:
                    channel.settimeout(limit.timeout())
                    channel.sendall(stdin.encode() if isinstance(stdin, str) else stdin)
                channel.shutdown_write()
                channel.setblocking(False)
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
                        raise WaitTimeoutError(
                            f"{command!r} over SSH",
                            limit.seconds,
                            last_output=seen.decode(errors="replace"),
                            evidence=str(self.log_path),
                        )
                    poll.poll(limit.poll_timeout())
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._raise_failure()
                raise self._lost(command, error, seen) from error
            self._raise_failure()
            # RFC 4254 section 6.10: a command that a signal ended sends no exit-status either.
            told = channel.exit_status_ready() and channel.exit_status != -1
            if not told and not self.connected:
                raise self._lost(command, "the connection ended", seen)
            yield "status", str(channel.exit_status).encode()

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

    def _open_channel(self, limit: Deadline) -> paramiko.Channel:
        # A guest that has rebooted leaves this side with a session that only looks alive, so a
        # session that cannot open a channel is replaced once.
        for last in (False, True):
            self.connect(limit)
            transport = self._transport
            assert transport is not None
            try:
                return transport.open_session(timeout=max(1.0, limit.remaining()))
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._raise_failure()
                self.disconnect()
                if last:
                    raise ConnectionLostError(f"no channel: {error}") from error
        raise AssertionError("unreachable")

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
            channel.invoke_subsystem("sftp")
            yield paramiko.SFTPClient(channel)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._raise_failure()
            self._write_log({"sftp": what, "error": str(error)})
            if isinstance(error, TimeoutError):
                raise WaitTimeoutError(what, limit.seconds) from error
            raise SshError(f"{what}: {error!r}") from error
        finally:
            channel.close()
        self._write_log({"sftp": what, "seconds": round(time.monotonic() - started, 4)})

    def boot_id(self, deadline: Deadline | float | None = None) -> str:
        """Return the guest's boot id, which is new at each boot (``random(4)``)."""
        return self.run(_BOOT_ID, deadline=deadline).check().stdout.strip()

    def _write_log(self, entry: dict[str, Any]) -> None:
        # A full disk must not lose a command's result; the console's log raises it.
        with (
            contextlib.suppress(OSError),
            self._log_lock,
            self.log_path.open("a", encoding="utf-8") as log,
        ):
            log.write(json.dumps({"t": round(time.time(), 6), **entry}) + "\n")


def _drain(ready: Any, receive: Any) -> Iterator[bytes]:
    while ready():
        chunk = receive(CHUNK)
        if not chunk:
            return
        yield chunk
