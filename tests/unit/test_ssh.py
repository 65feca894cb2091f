"""The SSH session against a real SSH server: paramiko's own, in this process."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from harness.deadline import after
from harness.errors import (
    CommandError,
    ConnectionLostError,
    HostKeyChangedError,
    PanicError,
    SshKeyRefusedError,
    WaitTimeoutError,
)
from harness.keys import KeyPair
from harness.ssh import Ssh

KEY = KeyPair.generate()


class Guest(paramiko.ServerInterface):
    """A server that runs commands with the local shell."""

    def __init__(self, owner: Server) -> None:
        self.owner = owner

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = username == "root" and key.get_base64() == KEY.public.split()[1]
        return AUTH_SUCCESSFUL if good else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.owner.started.set()
        if command == b"unanswered":
            self.owner.closing.wait()
        threading.Thread(target=self.serve, args=(channel, command), daemon=True).start()
        return True

    def serve(self, channel: paramiko.Channel, command: bytes) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if command == b"deaf":
                # It answers the request before.
                channel.recv(1)
                channel.send_exit_status(3)
                channel.close()
                return
            if command == b"echo":
                while chunk := channel.recv(4096):
                    channel.sendall(chunk)
                channel.send_exit_status(0)
                channel.close()
                return
            # The transport answers the request in a thread of its own. A real server's answer comes
            # before all else of the command: Ssh ends its input when it has the answer.
            stdin = channel.makefile("rb").read()
            if command == b"hang":
                channel.sendall(b"so far\n")
                return
            done = subprocess.run(
                ["/bin/sh", "-c", command], input=stdin, capture_output=True, check=False
            )
            channel.sendall(done.stdout)
            channel.sendall_stderr(done.stderr)
            if done.returncode >= 0:  # RFC 4254, section 6.10: not of what a signal ended
                channel.send_exit_status(done.returncode)
            channel.close()


class Server:
    """Listens on a port of its own until told to close."""

    def __init__(self) -> None:
        self.host_key = paramiko.ECDSAKey.generate()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.transports: list[paramiko.Transport] = []
        self.started = threading.Event()
        self.closing = threading.Event()
        self.refuse_first = 0
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                if self.refuse_first:
                    self.refuse_first -= 1
                    connection.close()
                    continue
                transport = paramiko.Transport(connection)
                transport.add_server_key(self.host_key)
                self.transports.append(transport)
                # With an event it does not wait for a client that may give up half-way.
                transport.start_server(event=threading.Event(), server=Guest(self))

    def drop(self) -> None:
        for transport in self.transports:
            transport.close()

    def close(self) -> None:
        self.closing.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def ssh(server: Server, tmp_path: Path) -> Iterator[Ssh]:
    with Ssh(server.address, user="root", key=KEY, log=tmp_path / "ssh.jsonl") as session:
        yield session


def log(ssh: Ssh) -> list[dict[str, object]]:
    return [json.loads(line) for line in ssh.log_path.read_text().splitlines()]


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    caught: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, caught


def test_run_tells_output_errors_and_status_apart(ssh: Ssh) -> None:
    result = ssh.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 3)
    with pytest.raises(CommandError, match="status 3"):
        result.check()
    (entry,) = [each for each in log(ssh) if "run" in each]
    assert entry["status"] == 3
    assert entry["stdout"] == "out\n"


def test_one_connection_serves_many_commands(ssh: Ssh, server: Server) -> None:
    for number in range(5):
        assert ssh.run(f"echo {number}").stdout == f"{number}\n"
    assert len(server.transports) == 1


def test_a_command_that_a_signal_ended_leaves_the_connection(ssh: Ssh, server: Server) -> None:
    assert ssh.run("echo so far; kill -9 $$").status == -1
    assert ssh.run("echo again").stdout == "again\n"
    assert len(server.transports) == 1


def test_megabytes_on_both_streams_come_whole(ssh: Ssh) -> None:
    result = ssh.run("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    assert len(result.stdout) == len(result.stderr) == 3_000_000


def test_stdin(ssh: Ssh) -> None:
    assert ssh.run("cat", stdin="hello").stdout == "hello"


def test_a_command_that_leaves_its_input_unread_has_its_status(ssh: Ssh) -> None:
    # More than the window of a channel, 2 MiB here: the rest is still to be sent when it ends.
    assert ssh.run("deaf", stdin=b"x" * 20_000_000).status == 3
    assert ssh.run("echo alive").ok


def test_a_command_that_prints_as_much_as_it_reads(ssh: Ssh) -> None:
    text = "0123456789abcdef" * 1_000_000
    assert ssh.run("echo", stdin=text).stdout == text


def test_stream_yields_lines_and_fails_at_the_end(ssh: Ssh) -> None:
    lines = []
    with pytest.raises(CommandError, match="status 4"):
        for line in ssh.stream("echo one; printf two; exit 4"):
            lines.append(line)
    assert lines == ["one", "two"]


def test_it_tries_until_the_server_answers(ssh: Ssh, server: Server) -> None:
    server.refuse_first = 3
    assert ssh.run("echo up").stdout == "up\n"
    assert [each["tries"] for each in log(ssh) if "connect" in each] == [4]


def test_refused_key(server: Server, tmp_path: Path) -> None:
    other = KeyPair.generate()
    session = Ssh(server.address, user="root", key=other, log=tmp_path / "l")
    with session, pytest.raises(SshKeyRefusedError) as caught:
        session.run("true")
    assert other.public in caught.value.evidence


def test_changed_host_key_shows_both_and_can_be_forgotten(ssh: Ssh, server: Server) -> None:
    ssh.run("true")
    pinned = ssh.host_key
    server.host_key = paramiko.ECDSAKey.generate()
    ssh.disconnect()
    with pytest.raises(HostKeyChangedError) as caught:
        ssh.run("true")
    assert pinned is not None
    assert pinned in caught.value.evidence
    assert server.host_key.get_base64() in caught.value.evidence
    ssh.forget_host_key()
    assert ssh.run("echo again").stdout == "again\n"


def test_connection_lost_in_a_command_keeps_what_was_said(ssh: Ssh, server: Server) -> None:
    with pytest.raises(ConnectionLostError) as caught:
        for line in ssh.stream("hang"):
            assert line == "so far"
            server.drop()
    assert "so far" in caught.value.evidence
    assert ssh.run("echo again").stdout == "again\n", "the next command connects anew"


def test_a_connection_that_is_just_ending_is_lost(
    ssh: Ssh, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko closes the channels of a connection first, and says later that it has ended."""
    asked = threading.Event()
    unlink = paramiko.Channel._unlink  # type: ignore[attr-defined]
    open_session = paramiko.Transport.open_session

    def slow_unlink(channel: paramiko.Channel) -> None:
        unlink(channel)
        if channel.transport is not None and not channel.transport.server_mode:
            asked.wait()

    def asking(transport: paramiko.Transport, *, timeout: float) -> paramiko.Channel:
        if server.started.is_set():
            asked.set()
        return open_session(transport, timeout=timeout)

    monkeypatch.setattr(paramiko.Channel, "_unlink", slow_unlink)
    monkeypatch.setattr(paramiko.Transport, "open_session", asking)
    try:
        with pytest.raises(ConnectionLostError):
            for _ in ssh.stream("hang"):
                server.drop()
    finally:
        asked.set()


def test_session_that_died_between_commands_is_replaced(ssh: Ssh, server: Server) -> None:
    ssh.run("true")
    server.drop()
    assert ssh.run("echo again").stdout == "again\n"


def test_deadline_says_what_was_printed(ssh: Ssh) -> None:
    ssh.run("true")
    with pytest.raises(WaitTimeoutError) as caught:
        ssh.run("hang", deadline=after(0.5))
    assert caught.value.last_output == "so far\n"


def test_no_server_at_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session = Ssh(silent.getsockname(), user="root", key=KEY, log=tmp_path / "l")
        with pytest.raises(WaitTimeoutError, match="an SSH login of root"):
            session.connect(after(0.3))


def test_a_guest_that_does_not_answer_a_request_is_waited_for_until_the_deadline(ssh: Ssh) -> None:
    ssh.connect()
    with pytest.raises(WaitTimeoutError, match="unanswered"):
        ssh.run("unanswered", deadline=after(0.5, scaled=False))


@pytest.mark.parametrize("command", ["hang", "unanswered"])
def test_failure_of_the_machine_ends_a_command_at_once(
    ssh: Ssh, server: Server, command: str
) -> None:
    ssh.connect()
    thread, caught = in_thread(lambda: ssh.run(command, deadline=after(600)))
    assert server.started.wait(20)
    ssh.fail(PanicError("the kernel panicked"))
    thread.join(60)
    assert [type(each) for each in caught] == [PanicError]


def test_failure_of_the_machine_ends_a_connect_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session = Ssh(silent.getsockname(), user="root", key=KEY, log=tmp_path / "l")
        thread, caught = in_thread(lambda: session.connect(after(600)))
        session.fail(PanicError("the kernel panicked"))
        thread.join(60)
        assert [type(each) for each in caught] == [PanicError]


def test_keys_are_new_each_time_and_written_for_their_owner_only(tmp_path: Path) -> None:
    assert KeyPair.generate().public != KeyPair.generate().public
    path = KEY.write(tmp_path / "key")
    assert path.stat().st_mode & 0o777 == 0o600
    told = subprocess.run(
        ["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True
    )
    assert told.stdout.split()[:2] == KEY.public.split()[:2]
