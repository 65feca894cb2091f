"""The SSH session against a real SSH server: paramiko's own, in this process."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from harness.deadline import MOST, UNSCALED, Conditions, Deadline, Scale
from harness.errors import (
    CommandError,
    ConnectionLostError,
    HostKeyChangedError,
    PanicError,
    SshError,
    SshKeyRefusedError,
    UsageError,
    Verdict,
    WaitTimeoutError,
    verdict_of,
)
from harness.ssh import KeyPair, Ssh, session
from tests.programs import need

KEY = KeyPair.generate()


class Guest(paramiko.ServerInterface):
    """A server that runs commands with the local shell."""

    def __init__(self, owner: Server) -> None:
        self.owner = owner

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.owner.on_login()
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

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        # OpenSSH without a subsystem of that name refuses; without its program, the channel ends.
        if self.owner.ends_subsystems:
            threading.Thread(target=channel.close, daemon=True).start()
        return self.owner.ends_subsystems

    def serve(self, channel: paramiko.Channel, command: bytes) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if command == b"deaf":
                # The server answers the request before it closes.
                channel.recv(1)
                channel.send_exit_status(3)
                channel.close()
                return
            if command == b"status first":
                channel.makefile("rb").read()
                channel.send_exit_status(0)
                channel.sendall(b"early output\n")  # wakes the reader, which the status does not
                self.owner.continued.wait()
                channel.sendall(b"late output\n")
                channel.close()
                return
            if command in (b"held", b"held and noisy"):
                # As OpenSSH while a process in the background has the output open.
                channel.makefile("rb").read()
                channel.sendall(b"started\n")
                channel.send_exit_status(3)
                while not self.owner.closing.wait(0.02):
                    if command == b"held and noisy":
                        channel.sendall(b"noise\n")
                return
            if command == b"echo":
                while chunk := channel.recv(4096):
                    channel.sendall(chunk)
                channel.send_exit_status(0)
                channel.close()
                return
            # The transport answers the request in a thread of its own. A real server answers before it
            # sends output, so wait for the end of the input, which Ssh sends after the answer.
            stdin = channel.makefile("rb").read()
            if command == b"hang":
                channel.sendall(b"so far\n")
                return
            process = subprocess.run(
                ["/bin/sh", "-c", command], input=stdin, capture_output=True, check=False
            )
            channel.sendall(process.stdout)
            channel.sendall_stderr(process.stderr)
            if process.returncode >= 0:  # RFC 4254, section 6.10: a signal has none
                channel.send_exit_status(process.returncode)
            channel.close()


class Server:
    """Listens on a port of its own until it is closed."""

    def __init__(self) -> None:
        self.host_key = paramiko.ECDSAKey.generate()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.transports: list[paramiko.Transport] = []
        self.started = threading.Event()
        self.continued = threading.Event()
        self.closing = threading.Event()
        self.refuse_first = 0
        self.ends_subsystems = False
        self.on_login: Callable[[], object] = lambda: None
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
                # The event prevents a wait for a client that may give up during the handshake.
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
    with Ssh(
        server.address, user="root", key=KEY, log=tmp_path / "ssh.jsonl", name="guest"
    ) as session:
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


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition of paramiko holds, for which it has no event."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_run_returns_output_errors_status_command_and_machine(ssh: Ssh) -> None:
    result = ssh.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 3)
    assert (result.command, result.machine) == ("echo out; echo err >&2; exit 3", "guest")
    with pytest.raises(CommandError, match="status 3"):
        result.check()
    (entry,) = [entry for entry in log(ssh) if "run" in entry]
    assert entry["status"] == 3
    assert entry["stdout"] == "out\n"


def test_commands_and_copies_say_what_they_wait_for(server: Server, tmp_path: Path) -> None:
    shown: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def waiting(awaited: str, limit: Deadline) -> Iterator[None]:
        shown.append((awaited, limit.seconds))
        yield

    target = str(tmp_path / "copy")
    options: dict[str, Any] = {"scale": Scale(8.0), "waiting": waiting}
    with Ssh(server.address, user="root", key=KEY, log=tmp_path / "1.jsonl", **options) as ssh:
        ssh.run("true")
        ssh.put("text", target, 20)
        ssh.get(target, deadline=30)
        assert next(ssh.stream("echo line", 40)) == "line"
    with Ssh(server.address, user="root", key=KEY, log=tmp_path / "2.jsonl", **options) as ssh:
        ssh.connect(50).connect(60)
    assert shown == [
        ("run over SSH: true", 480),
        ("log in over SSH as root", 480),
        (f"put {target}", 160),
        (f"get {target}", 240),
        ("stream over SSH: echo line", 320),
        ("log in over SSH as root", 400),
    ]


def test_one_connection_serves_many_commands(ssh: Ssh, server: Server) -> None:
    for number in range(5):
        assert ssh.run(f"echo {number}").stdout == f"{number}\n"
    assert len(server.transports) == 1


def test_a_command_that_a_signal_ends_keeps_the_connection(ssh: Ssh, server: Server) -> None:
    assert ssh.run("echo so far; kill -9 $$").status == -1
    assert ssh.run("echo again").stdout == "again\n"
    assert len(server.transports) == 1


def test_megabytes_on_both_streams_arrive_completely(ssh: Ssh) -> None:
    result = ssh.run("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    assert len(result.stdout) == len(result.stderr) == 3_000_000


def test_a_command_reads_its_input(ssh: Ssh) -> None:
    assert ssh.run("cat", stdin="hello").stdout == "hello"


def test_a_command_may_leave_its_input_unread(ssh: Ssh) -> None:
    # This is more than the window of a channel, 2 MiB here, so the command ends during the send.
    assert ssh.run("deaf", stdin=b"x" * 20_000_000).status == 3
    assert ssh.run("echo alive").ok


def test_a_command_may_print_as_much_as_it_reads(ssh: Ssh) -> None:
    text = "0123456789abcdef" * 1_000_000
    assert ssh.run("echo", stdin=text).stdout == text


def test_stream_yields_lines_and_raises_at_the_end(ssh: Ssh) -> None:
    lines = []
    with pytest.raises(CommandError, match="status 4"):
        for line in ssh.stream("echo one; printf two; exit 4"):
            lines.append(line)
    assert lines == ["one", "two"]


def test_connect_retries_until_the_server_answers(ssh: Ssh, server: Server) -> None:
    server.refuse_first = 3
    assert ssh.run("echo up").stdout == "up\n"
    assert [entry["tries"] for entry in log(ssh) if "connect" in entry] == [4]


class Load:
    """The clock of a host that is calm at first, and may be under load from some moment on."""

    def __init__(self) -> None:
        self._since: float | None = None
        self.words = ""

    def begin(self) -> None:
        self._since = time.monotonic()

    def calm(self) -> float:
        now = time.monotonic()
        return now if self._since is None else self._since + (now - self._since) / MOST

    def stretch(self) -> float:
        return 1.0 if self._since is None else MOST

    def during(self, since: float) -> Conditions:
        return Conditions(self.stretch(), self.words)


def test_a_login_follows_the_load_that_comes_in_its_middle(server: Server, tmp_path: Path) -> None:
    load = Load()
    scale = Scale(clock=load)
    limit = scale.after(2)

    def slow() -> None:
        load.begin()
        while time.monotonic() < limit.at + 0.5:
            server.closing.wait(limit.at + 0.5 - time.monotonic())

    server.on_login = slow
    with Ssh(server.address, user="root", key=KEY, log=tmp_path / "l", scale=scale) as ssh:
        assert ssh.connect(limit).connected


def test_a_login_that_is_never_answered_ends_at_the_deadline(
    server: Server, tmp_path: Path
) -> None:
    server.on_login = server.closing.wait
    with (
        Ssh(server.address, user="root", key=KEY, log=tmp_path / "l") as ssh,
        pytest.raises(WaitTimeoutError, match="an SSH login of root"),
    ):
        ssh.connect(UNSCALED.after(1.5))


def test_a_key_exchange_that_is_never_answered_leaves_no_timer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-deaf\r\n")
                    while connection.recv(4096):
                        pass

        thread = threading.Thread(target=greet)
        thread.start()
        session = Ssh(listener.getsockname(), user="root", key=KEY, log=tmp_path / "l")
        with session, pytest.raises(WaitTimeoutError, match="an SSH login of root"):
            session.connect(UNSCALED.after(1.2))
        thread.join()
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            # One that was cancelled ends at once, but not before its thread has run.
            timer.join(60)
            assert not timer.is_alive(), "the process would wait for it at its end"


@pytest.mark.parametrize("step", [-86400.0 * 365, 86400.0 * 365 * 60])
def test_a_step_of_the_hosts_clock_ends_no_login_and_no_request(
    server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    jumped = threading.Event()

    class Stepped:
        def __getattr__(self, name: str) -> object:
            return getattr(time, name)

        def time(self) -> float:
            return time.time() + (step if jumped.is_set() else 0.0)

    for module in ("transport", "auth_handler", "packet"):
        monkeypatch.setattr(f"paramiko.{module}.time", Stepped())
    looks = threading.Event()

    def step_the_clock() -> None:
        jumped.set()
        looks.wait(0.5)  # paramiko looks at the clock ten times a second.

    server.on_login = step_the_clock
    assert ssh.connect(UNSCALED.after(60)).connected
    jumped.clear()
    open_session = paramiko.Transport.open_session

    def opening(transport: paramiko.Transport, *, timeout: float) -> paramiko.Channel:
        threading.Timer(0.05, jumped.set).start()
        return open_session(transport, timeout=timeout)

    grant = Guest.check_channel_request

    def slow_grant(guest: Guest, kind: str, chanid: int) -> int:
        looks.wait(0.5)
        return grant(guest, kind, chanid)

    monkeypatch.setattr(paramiko.Transport, "open_session", opening)
    monkeypatch.setattr(Guest, "check_channel_request", slow_grant)
    assert ssh.run("echo on").stdout == "on\n"
    assert len(server.transports) == 1


@pytest.mark.parametrize("words", ["the host was under pressure for 8 of 10 s", ""])
def test_the_loss_of_a_connection_under_pressure_is_the_hosts_fault(
    server: Server, tmp_path: Path, words: str
) -> None:
    load = Load()
    load.words = words
    scale = Scale(clock=load)
    with Ssh(server.address, user="root", key=KEY, log=tmp_path / "l", scale=scale) as ssh:
        with pytest.raises(ConnectionLostError) as caught:
            for _ in ssh.stream("hang"):
                server.drop()
        assert verdict_of(caught.value) is (Verdict.INFRA if words else Verdict.PRODUCT)
        assert caught.value.pressure == words
        assert words in str(caught.value)


def test_a_refused_key_is_shown(server: Server, tmp_path: Path) -> None:
    other = KeyPair.generate()
    session = Ssh(server.address, user="root", key=other, log=tmp_path / "l")
    with session, pytest.raises(SshKeyRefusedError) as caught:
        session.run("true")
    assert other.public in caught.value.evidence


def test_a_changed_host_key_is_shown_and_can_be_forgotten(ssh: Ssh, server: Server) -> None:
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


def test_the_loss_of_the_connection_shows_the_output_so_far(ssh: Ssh, server: Server) -> None:
    with pytest.raises(ConnectionLostError) as caught:
        for line in ssh.stream("hang"):
            assert line == "so far"
            server.drop()
    assert "so far" in caught.value.evidence
    assert ssh.run("echo again").stdout == "again\n", "the next command connects anew"


def test_a_connection_that_is_ending_counts_as_lost(
    ssh: Ssh, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko closes the channels of a connection before it marks the connection as ended."""
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


def test_a_session_that_ended_between_commands_is_replaced(ssh: Ssh, server: Server) -> None:
    ssh.run("true")
    server.drop()
    assert ssh.run("echo again").stdout == "again\n"


def test_a_timeout_shows_the_output_so_far(ssh: Ssh) -> None:
    ssh.run("true")
    with pytest.raises(WaitTimeoutError) as caught:
        ssh.run("hang", deadline=UNSCALED.after(0.5))
    assert caught.value.last_output == "so far\n"


def test_a_silent_server_times_out_the_login(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session = Ssh(silent.getsockname(), user="root", key=KEY, log=tmp_path / "l")
        with pytest.raises(WaitTimeoutError, match="an SSH login of root"):
            session.connect(deadline=UNSCALED.after(0.3))


def test_an_unanswered_request_ends_at_the_deadline(ssh: Ssh) -> None:
    ssh.connect()
    with pytest.raises(WaitTimeoutError, match="unanswered"):
        ssh.run("unanswered", deadline=UNSCALED.after(0.5))


@pytest.mark.parametrize("command", ["hang", "unanswered"])
def test_a_failure_ends_a_command_at_once(ssh: Ssh, server: Server, command: str) -> None:
    ssh.connect()
    thread, caught = in_thread(lambda: ssh.run(command, deadline=UNSCALED.after(600)))
    assert server.started.wait(20)
    ssh.fail(PanicError("the kernel panicked"))
    thread.join(60)
    assert [type(error) for error in caught] == [PanicError]


def test_a_failure_ends_a_connect_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session = Ssh(silent.getsockname(), user="root", key=KEY, log=tmp_path / "l")
        thread, caught = in_thread(lambda: session.connect(deadline=UNSCALED.after(600)))
        session.fail(PanicError("the kernel panicked"))
        thread.join(60)
        assert [type(error) for error in caught] == [PanicError]


def test_paramiko_is_loaded_at_the_first_use_of_ssh() -> None:
    code = (
        "import sys, harness.ssh, harness.console\n"
        "heavy = {'paramiko', 'cryptography', 'pexpect', 'pyte'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert harness.ssh.Ssh.__name__ == 'Ssh' and 'paramiko' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keys_are_new_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    need("ssh-keygen")
    assert KeyPair.generate().public != KeyPair.generate().public
    path = KEY.write(tmp_path / "key")
    assert path.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(
        ["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[:2] == KEY.public.split()[:2]


def test_output_that_arrives_after_the_status_is_kept(
    ssh: Ssh, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may send the status before the last output; the reader must not stop between."""
    drain = session._drain

    def slow_drain(ready: Callable[[], bool], receive: Callable[[int], bytes]) -> Iterator[bytes]:
        yield from drain(ready, receive)
        channel = receive.__self__  # type: ignore[attr-defined]
        if channel.exit_status_ready() and not server.continued.is_set():
            # The last output and its end arrive after this round has drained both streams.
            server.continued.set()
            wait_for(lambda: channel.eof_received)

    monkeypatch.setattr(session, "_drain", slow_drain)
    assert ssh.run("status first").stdout == "early output\nlate output\n"


def test_a_failure_after_the_end_of_a_command_does_not_hide_its_result(
    ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine of the test may fail while the result of this command is being read."""
    drain = session._drain
    failures: list[PanicError] = []

    def failing_drain(
        ready: Callable[[], bool], receive: Callable[[int], bytes]
    ) -> Iterator[bytes]:
        channel = receive.__self__  # type: ignore[attr-defined]
        wait_for(lambda: channel.eof_received and channel.exit_status_ready())
        if not failures:
            failures.append(PanicError("the kernel of machine b panicked"))
            ssh.fail(failures[0])
        yield from drain(ready, receive)

    monkeypatch.setattr(session, "_drain", failing_drain)
    result = ssh.run("echo all; exit 3")
    assert (result.stdout, result.status) == ("all\n", 3)
    with pytest.raises(PanicError):
        ssh.run("echo next")


@pytest.mark.parametrize("command", ["held", "held and noisy"])
def test_a_process_in_the_background_does_not_keep_a_command_from_ending(
    ssh: Ssh, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(session, "_QUIET", 0.2)
    monkeypatch.setattr(session, "_AFTER", 0.5)
    result = ssh.run(command, deadline=UNSCALED.after(600))
    assert result.status == 3
    assert result.stdout.startswith("started\n")
    assert "Redirect it" in result.hint
    with pytest.raises(CommandError, match="Redirect it"):
        result.check()
    assert log(ssh)[-1]["hint"] == result.hint
    lines = []
    with pytest.raises(CommandError, match="Redirect it"):
        for line in ssh.stream(command, deadline=UNSCALED.after(600)):
            lines.append(line)
    assert lines[0] == "started"
    assert ssh.run("echo again").hint == ""


def test_a_status_that_arrives_at_the_deadline_is_the_result(ssh: Ssh) -> None:
    ssh.connect()
    result = ssh.run("held", deadline=UNSCALED.after(1))
    assert (result.stdout, result.status) == ("started\n", 3)


def test_a_line_without_end_arrives_in_pieces(ssh: Ssh) -> None:
    size = 5 * 1024 * 1024
    lines = list(ssh.stream(f"echo one; head -c {size} /dev/zero | tr '\\0' x; echo; printf end"))
    assert (lines[0], lines[-1]) == ("one", "end")
    assert "".join(lines[1:-1]) == "x" * size
    assert max(map(len, lines)) < 2 * 1024 * 1024


def test_output_without_end_does_not_keep_a_wait_from_its_deadline() -> None:
    assert len(list(session._drain(lambda: True, lambda size: b"x" * size))) < 100


@pytest.mark.parametrize("ends", [False, True], ids=["refused", "no program"])
def test_files_are_copied_without_an_sftp_server(
    ssh: Ssh, server: Server, tmp_path: Path, ends: bool
) -> None:
    server.ends_subsystems = ends
    content = bytes(range(256)) * 20_000
    target = tmp_path / "it's a file"
    ssh.put(content, str(target), mode=0o640)
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o640
    copy = tmp_path / "copy"
    assert ssh.get(str(target), str(copy)) == copy.read_bytes() == content
    ssh.put(copy, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == content
    ssh.put("text", str(target))
    assert ssh.get(str(target)) == b"text"
    with pytest.raises(SshError, match="No such file") as caught:
        ssh.get(str(tmp_path / "none"))
    assert "no SFTP server" in caught.value.hint
    assert len(server.transports) == 1


def test_an_input_that_cannot_be_read_is_named(ssh: Ssh, tmp_path: Path) -> None:
    # Reading the memory of a process at address 0 fails (proc_pid_mem(5)).
    with (
        Path("/proc/self/mem").open("rb") as unreadable,
        pytest.raises(UsageError, match="the input cannot be read") as caught,
    ):
        ssh._collect("cat > /dev/null", UNSCALED.after(60), unreadable)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(UsageError, match="does not exist"):
        ssh.put(tmp_path / "none", "/tmp/none")
