"""One SSH connection: made as soon as the guest answers, kept, and made again when it is lost.

There is no event on the host for "sshd now listens": QEMU's user-mode network accepts a forwarded
connection at once, whatever the guest does. So :meth:`Connection.connect` tries until its deadline;
between tries it waits on an event that the machine's end sets, never in a plain sleep.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import paramiko

from harness.deadline import Deadline, of
from harness.errors import (
    ConnectionLostError,
    HarnessError,
    HostKeyChangedError,
    SshKeyRefusedError,
    WaitTimeoutError,
)
from harness.keys import KeyPair

_PACE_FIRST: Final = 0.05
_PACE_MOST: Final = 1.0
_PATIENCE_FIRST: Final = 1.0
_PATIENCE_MOST: Final = 15.0

# Failures reach the caller as exceptions; paramiko's thread would print them a second time.
paramiko.util.get_logger("paramiko").setLevel("CRITICAL")


class Connection:
    """A connection to a guest's SSH server; made of what :class:`~harness.ssh.Ssh` is made of."""

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
        """Whether a session is up, as far as this side knows."""
        return self._transport is not None and self._transport.is_active()

    def connect(self, deadline: Deadline | float | None = None) -> Self:
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
        """Raise what the machine failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def _open_channel(self, limit: Deadline) -> paramiko.Channel:
        """Return a new channel of the session, made anew where it is lost.

        Raises:
            ConnectionLostError: if there is none, twice.
            WaitTimeoutError, SshKeyRefusedError, HostKeyChangedError: as :meth:`connect`.
        """
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

    def _answers(self, limit: Deadline) -> bool:
        """Ask the guest whether the session still stands, by a channel for nothing.

        paramiko closes the channels of a connection that has ended before :attr:`connected` says so:
        who finds a channel closed cannot tell why.
        """
        transport = self._transport
        if transport is None:
            return False
        try:
            transport.open_session(timeout=max(1.0, limit.remaining())).close()
        except paramiko.ChannelException:
            return True  # a refusal is an answer
        except (OSError, EOFError, paramiko.SSHException):
            return False
        return True

    def _write_log(self, entry: dict[str, Any]) -> None:
        """Append a line to the log."""
        # A full disk must not lose a command's result; the console's log raises it.
        with (
            contextlib.suppress(OSError),
            self._log_lock,
            self.log_path.open("a", encoding="utf-8") as log,
        ):
            log.write(json.dumps({"t": round(time.time(), 6), **entry}) + "\n")
