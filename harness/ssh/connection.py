"""One SSH connection: opened when the guest's server answers, kept, and reopened when it is lost.

The host gets no event when sshd starts to listen: QEMU's user-mode network accepts a forwarded
connection at once, whatever the guest does. So :meth:`Connection.connect` retries until its
deadline. Between two tries it waits on an event, which a failure of the machine sets.

paramiko's own time limits are constants on the wall clock (``time.time()`` in its ``transport.py``,
``auth_handler.py`` and ``packet.py``): they know no load of the host, and a step of its clock ends them.
So they are as good as switched off, and a :class:`~harness.deadline.Deadline` closes the connection.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import paramiko

from harness.deadline import MOST, SUDDEN, UNSCALED, Deadline, Limit, Scale
from harness.errors import (
    ConnectionLostError,
    HarnessError,
    HostKeyChangedError,
    SshKeyRefusedError,
    WaitTimeoutError,
)
from harness.ssh.key import KeyPair

_PACE_FIRST: Final = 0.05
_PACE_MOST: Final = 1.0
_PATIENCE_FIRST: Final = 1.0
_PATIENCE_MOST: Final = 15.0

_NEVER: Final = 4e9
"""Seconds of a time limit of paramiko's that does not matter: more than a clock that begins in 1970 is
set forward by, and less than :data:`threading.TIMEOUT_MAX`."""

_REKEYED: Final = 30.0
"""Seconds on a good host for new keys in the middle of a session, after some 512 MiB; paramiko's own."""

_MOMENT: Final = 1.0
"""Seconds that a request has at least, even at the end of a deadline."""

# Failures reach the caller as exceptions; the thread of paramiko would print them a second time.
paramiko.util.get_logger("paramiko").setLevel("CRITICAL")


class Connection:
    """A connection to a guest's SSH server; :class:`~harness.ssh.Ssh` documents the arguments."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        user: str,
        key: KeyPair,
        log: Path,
        name: str = "",
        host_key: str | None = None,
        guest: Callable[[], tuple[str, float, str]] | None = None,
        scale: Scale = UNSCALED,
        waiting: Callable[[str, Deadline], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._scale = scale
        self._waiting = waiting or (lambda awaited, limit: contextlib.nullcontext())
        self.address = address
        self.name = name
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the session is open, as far as the host can see."""
        return self._transport is not None and self._transport.is_active()

    def connect(self, deadline: Limit = None) -> Self:
        """Wait for the guest's server and log in; do nothing if the session is open.

        Args:
            deadline: 30 s on a good host by default.

        Raises:
            SshKeyRefusedError: The guest refused the key.
            HostKeyChangedError: The host key differs from the pinned one.
            WaitTimeoutError: The deadline passed; the message has the error of the last try.
            HarnessError: The failure of the machine, as soon as it fails.
        """
        limit = self._scale.limit(deadline, 30)
        self._raise_failure()
        if not self.connected:
            with self._waiting(f"log in over SSH as {self.user}", limit):
                self._connect(limit)
        return self

    def _connect(self, limit: Deadline) -> None:
        started = time.monotonic()
        pace, patience = _PACE_FIRST, _PATIENCE_FIRST
        tries = 0
        reason = "no try"
        while True:
            self._raise_failure()
            if self.connected:  # by another thread
                return
            tries += 1
            try:
                self._try_connect(limit, patience)
            except (OSError, EOFError, paramiko.SSHException) as error:
                reason = str(error) or type(error).__name__
            else:
                self._write_log(
                    {"connect": self.user, "tries": tries, "seconds": time.monotonic() - started}
                )
                return
            if limit.expired:
                self._raise_failure()
                self._write_log({"connect": self.user, "tries": tries, "error": reason})
                last_output, silent, remarks = self._guest() if self._guest else ("", None, "")
                raise WaitTimeoutError(
                    f"an SSH login of {self.user} ({tries} tries, the last: {reason})",
                    limit,
                    last_output=last_output,
                    silent=silent,
                    remarks=remarks,
                    evidence=str(self.log_path),
                    hint="serial.log may show why sshd or the network of the guest did not start",
                )
            self._stop.wait(min(pace, limit.remaining()))
            pace = min(pace * 1.5, _PACE_MOST)
            patience = min(patience * 1.5, _PATIENCE_MOST)

    def _try_connect(self, limit: Deadline, patience: float) -> None:
        # While the guest's network is down, the connection is open and silent. The first tries give
        # up early, so that a new connection reaches the server soon after it starts. Later tries
        # wait longer, for a server that answers slowly.
        patience = max(0.1, min(patience, limit.remaining()))
        sock = socket.create_connection(self.address, timeout=patience)
        # From here on fail() can end the try, through the key exchange and the login as well.
        self._greeting = sock
        try:
            self._transport = self._greet(sock, limit, patience)
        finally:
            self._greeting = None

    def _greet(self, sock: socket.socket, limit: Deadline, patience: float) -> paramiko.Transport:
        """Return a transport that is logged in; it owns the socket."""
        try:
            sock.settimeout(patience)
            self._raise_failure()
            if not sock.recv(4, socket.MSG_PEEK):
                raise ConnectionResetError("the guest closed the connection")
            transport = paramiko.Transport(sock)
        except BaseException:
            sock.close()
            raise
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = _NEVER
        transport.clear_to_send_timeout = _REKEYED * self._scale.factor * MOST
        try:
            # An emulated guest computes its side of the key exchange slowly.
            with closed_at(_a_moment(limit), lambda: _hang_up(sock)):
                transport.start_client()
                self._check_host_key(transport)
                self._authenticate(transport, limit)
        except BaseException:
            transport.close()
            # It starts a timer, whose thread keeps the process from ending until it is over.
            transport.packetizer.complete_handshake()
            raise
        return transport

    def _check_host_key(self, transport: paramiko.Transport) -> None:
        shown = transport.get_remote_server_key()
        text = f"{shown.get_name()} {shown.get_base64()}"
        if self.host_key is None:
            self.host_key = text
        elif self.host_key != text:
            raise HostKeyChangedError(
                f"the host key of {self.address[0]}:{self.address[1]} has changed",
                evidence=f"pinned: {self.host_key}\nshown:  {text}",
                hint="a reinstalled system has new host keys: call ssh.forget_host_key() if the"
                " scenario expects them",
            )

    def _authenticate(self, transport: paramiko.Transport, limit: Deadline) -> None:
        try:
            transport.auth_publickey(self.user, self.key.paramiko())
        except paramiko.AuthenticationException as error:
            # paramiko raises it for a lost connection and for its time-out, too
            # (auth_handler.py, AuthHandler.wait_for_response); neither is a refusal.
            if limit.expired or not transport.is_active():
                raise ConnectionResetError(f"no answer to the login: {error}") from error
            raise SshKeyRefusedError(
                f"the guest refused the key of {self.user}",
                evidence=f"{error}; key {self.key.public}",
                hint="check authorized_keys of that user on the console",
            ) from error

    def forget_host_key(self) -> None:
        """End the session; the next one accepts any host key and pins it."""
        self.host_key = None
        self.disconnect()

    def disconnect(self) -> None:
        """End the session; the next command opens a new one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def close(self) -> None:
        """End the session and all waits, present and later; a second call does nothing."""
        host, port = self.address
        self.fail(
            HarnessError(f"the SSH session to {host}:{port} is closed", evidence=str(self.log_path))
        )
        self.disconnect()

    def fail(self, error: HarnessError) -> None:
        """End all waits, present and later, with ``error``; a leaf of a failure scope.

        The first failure stays. A command whose status and output have arrived still succeeds.
        """
        self._failure = self._failure or error
        self._stop.set()
        greeting, transport = self._greeting, self._transport
        if greeting is not None:
            _hang_up(greeting)
        if transport is not None:
            transport.close()

    def _raise_failure(self) -> None:
        """Raise the failure, if there is one."""
        if self._failure is not None:
            raise self._failure

    def _open_channel(self, limit: Deadline) -> paramiko.Channel:
        """Return a new channel of the session; reopen the session if it is lost.

        Raises:
            ConnectionLostError: The guest opened no channel on two sessions in a row.
            HarnessError: As :meth:`connect` does.
        """
        # After a reboot of the guest, the session only looks open to the host. So a session that
        # cannot open a channel is replaced once.
        for last in (False, True):
            self.connect(limit)
            transport = self._transport
            assert transport is not None
            try:
                return _channel_of(transport, limit)
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._raise_failure()
                self.disconnect()
                if last:
                    raise ConnectionLostError(
                        f"no channel: {error}",
                        evidence=str(self.log_path),
                        pressure=self._scale.pressure(max(SUDDEN, limit.elapsed)),
                    ) from error
        raise AssertionError("unreachable")

    def _answers(self, limit: Deadline) -> bool:
        """Return whether the guest still answers; open and close a channel to find out.

        When a connection ends, paramiko closes its channels before it marks the connection as
        ended. So a closed channel does not show whether the connection has ended.
        """
        transport = self._transport
        if transport is None:
            return False
        try:
            _channel_of(transport, limit).close()
        except paramiko.ChannelException:
            return True  # a refusal is an answer
        except (OSError, EOFError, paramiko.SSHException):
            return False
        return True

    def _write_log(self, entry: dict[str, Any]) -> None:
        """Append a line to the log; errors are ignored."""
        # A full disk must not lose the result of a command. The console reports a full disk.
        with (
            contextlib.suppress(OSError),
            self._log_lock,
            self.log_path.open("a", encoding="utf-8") as log,
        ):
            log.write(json.dumps({"t": round(time.time(), 6), **entry}) + "\n")


@contextlib.contextmanager
def closed_at(limit: Deadline, close: Callable[[], object]) -> Iterator[None]:
    """Close something at the deadline, which ends paramiko's waits for it in the block.

    Args:
        limit: The deadline, in which the load of the host counts.
        close: Called once, in a thread of its own, if the block has not ended by then.
    """
    done = threading.Event()

    def watch() -> None:
        if not limit.wait(done.wait):
            # It may send a message to the guest, on a connection that may have ended.
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                close()

    threading.Thread(target=watch, name="ssh-deadline", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _a_moment(limit: Deadline) -> Deadline:
    """Return the deadline, or one a moment from now if less is left."""
    return limit if limit.remaining() >= _MOMENT else UNSCALED.after(_MOMENT)


def _channel_of(transport: paramiko.Transport, limit: Deadline) -> paramiko.Channel:
    """Return a new channel; at the deadline, the connection counts as lost."""
    with closed_at(_a_moment(limit), transport.close):
        return transport.open_session(timeout=_NEVER)


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
