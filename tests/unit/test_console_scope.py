"""The failure of one machine ends the waits on the console and the SSH session of another."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL

from harness.console import Console
from harness.deadline import UNSCALED
from harness.errors import HarnessError, PanicError, QemuExitedError, WaitTimeoutError
from harness.scope import Scope
from harness.ssh import Ssh
from harness.ssh.key import KeyPair
from tests.unit.test_console_support import SOON, GuestEnd, line

PANIC = b"[    3.141592] Kernel panic - not syncing: test\r\n"
LONG = 600.0
"""Longer than any test: a wait that ends has been ended."""

KEY = KeyPair.generate()


class Pair:
    """The consoles of machines a and b in one test's scope, as a machine registers them.

    Attributes:
        a: The console of machine a.
        b: The console of machine b.
        guest_a: The guest's end of a.
        guest_b: The guest's end of b.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.test = stack.enter_context(Scope("test"))
        (self.a, self.guest_a), (self.b, self.guest_b) = (
            self._open(stack, folder, name) for name in ("a", "b")
        )

    def _open(
        self, stack: contextlib.ExitStack, folder: Path, name: str
    ) -> tuple[Console, GuestEnd]:
        scope = stack.enter_context(self.test.child(f"machine {name}"))

        def report(error: BaseException) -> None:
            assert isinstance(error, HarnessError)
            scope.fail(error)

        near, far = line()
        stack.enter_context(far)
        console = stack.enter_context(
            Console(near, log=folder / f"{name}.log", cast=None, name=name, on_failure=report)
        )
        scope.add(console)
        return console, far

    def panic_b(self) -> None:
        """Let machine b panic, and return when machine a's console has failed."""
        self.guest_b.sendall(PANIC)
        with pytest.raises(PanicError):
            self.b.expect("never", LONG)
        with self.test.alarm() as alarm:
            poller = select.poll()
            poller.register(alarm, 0)
            assert poller.poll(SOON * 1000)
        # The scope has failed; its leaves fail one after the other.
        with pytest.raises(PanicError):
            self.a.expect("never", LONG)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield Pair(stack, tmp_path)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    caught: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread, caught


def _wait_for_an_expected_panic(console: Console) -> None:
    with console.expecting(PanicError) as panic:
        panic.wait(LONG)


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda console: console.expect("never", LONG), id="expect"),
        pytest.param(lambda console: console.expect_exact("never", LONG), id="expect_exact"),
        pytest.param(lambda console: console.wait_for_screen("never", LONG), id="screen"),
        pytest.param(lambda console: console.login(deadline=LONG), id="login"),
        pytest.param(lambda console: console.send(b"x" * (1 << 24), LONG), id="send"),
        pytest.param(_wait_for_an_expected_panic, id="expecting"),
    ],
)
def test_a_panic_of_one_machine_ends_each_kind_of_wait_on_another(
    pair: Pair, wait: Callable[[Console], object]
) -> None:
    thread, caught = in_thread(lambda: wait(pair.a))
    pair.panic_b()
    thread.join(SOON)
    assert [type(error) for error in caught] == [PanicError]
    assert "b: the guest's kernel panicked" in str(caught[0])


def test_output_before_the_failure_of_another_machine_still_counts(pair: Pair) -> None:
    pair.guest_a.sendall(b"ready and steady")
    pair.a.expect("steady", SOON)
    pair.panic_b()
    pair.guest_a.sendall(b"too late")
    arrived = UNSCALED.after(SOON)
    while pair.a.mark() < len(b"ready and steadytoo late"):
        assert not arrived.expired
        threading.Event().wait(0.01)
    pair.a.expect("ready", SOON, since=0)
    with pytest.raises(PanicError):
        pair.a.expect("too late", SOON)


def test_an_expected_panic_is_that_of_the_same_machine(pair: Pair) -> None:
    with pair.a.expecting(PanicError) as panic:
        pair.panic_b()
        with pytest.raises(PanicError):
            pair.a.expect("never", LONG)
        with pytest.raises(PanicError):
            panic.wait(UNSCALED.after(SOON))
    assert not panic


def test_an_expected_panic_leaves_the_other_machine_alone(pair: Pair) -> None:
    with pair.b.expecting(PanicError) as panic:
        pair.guest_b.sendall(PANIC)
        assert panic.wait(UNSCALED.after(SOON)) is not None
    pair.guest_a.sendall(b"on and on")
    pair.a.expect("on and on", SOON)
    assert pair.test.failure is None


def test_an_expected_panic_that_was_seen_outlives_a_later_failure(pair: Pair) -> None:
    with pair.b.expecting(PanicError) as panic:
        pair.guest_b.sendall(PANIC + b"END")
        pair.b.expect("END", SOON)
        pair.b.fail(QemuExitedError("QEMU ended"))
        assert panic.wait(LONG) is not None


def test_a_failure_during_clear_failure_does_not_abort_a_later_send(pair: Pair) -> None:
    """A second failure raises the abort signal for a failure that is forgotten meanwhile."""
    console = pair.a
    console.fail(QemuExitedError("the first"))
    raise_signal = console._stream._aborted.set
    clearing: list[threading.Thread] = []

    def clear_meanwhile() -> None:
        thread, _ = in_thread(console.clear_failure)
        clearing.append(thread)
        thread.join(0.3)
        raise_signal()

    console._stream._aborted.set = clear_meanwhile  # type: ignore[method-assign]
    console.fail(QemuExitedError("the second"))
    clearing[0].join(SOON)
    console.check()

    def read() -> None:
        left = 1 << 22
        while left:
            left -= len(pair.guest_a.recv(1 << 16))

    thread, caught = in_thread(read)
    try:
        console.send(b"x" * (1 << 22), SOON)
    except WaitTimeoutError as error:
        pytest.fail(f"a stale signal ended the wait: {error}")
    thread.join(SOON)
    assert caught == []


# SSH: paramiko's own server, or a bare socket, in this process.


class Login(paramiko.ServerInterface):
    """A server whose answer to the first login is up to the test."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.answer = answer

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.answer()
        return AUTH_SUCCESSFUL if key.get_base64() == KEY.public.split()[1] else AUTH_FAILED


@contextlib.contextmanager
def ssh_server(answer: Callable[[paramiko.Transport], None]) -> Iterator[tuple[str, int]]:
    """Serve SSH on a port; ``answer`` is called before each login is answered."""
    host_key = paramiko.ECDSAKey.generate()
    transports: list[paramiko.Transport] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    transport = paramiko.Transport(listener.accept()[0])
                    transports.append(transport)
                    transport.add_server_key(host_key)
                    interface = Login(lambda: answer(transports[-1]))
                    transport.start_server(event=threading.Event(), server=interface)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SOON)
            for transport in transports:
                transport.close()


@contextlib.contextmanager
def silent_after_banner(reached: threading.Event) -> Iterator[tuple[str, int]]:
    """Serve the line that begins SSH (RFC 4253, section 4.2) and nothing after it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = stack.enter_context(listener.accept()[0])
                    connection.sendall(b"SSH-2.0-silent\r\n")
                    connection.recv(1)
                    reached.set()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SOON)


def session(address: tuple[str, int], folder: Path) -> Ssh:
    return Ssh(address, user="root", key=KEY, log=folder / "ssh.jsonl")


def test_a_failure_ends_the_key_exchange_at_once(tmp_path: Path) -> None:
    reached = threading.Event()
    with silent_after_banner(reached) as address, session(address, tmp_path) as ssh:
        thread, caught = in_thread(lambda: ssh.connect(LONG))
        assert reached.wait(SOON)
        ssh.fail(PanicError("machine b panicked"))
        thread.join(SOON)
        assert [type(error) for error in caught] == [PanicError]


def test_a_failure_ends_a_login_at_once(tmp_path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def hang(_: paramiko.Transport) -> None:
        reached.set()
        release.wait(60)

    with ssh_server(hang) as address, session(address, tmp_path) as ssh:
        thread, caught = in_thread(lambda: ssh.connect(LONG))
        assert reached.wait(SOON)
        ssh.fail(PanicError("machine b panicked"))
        thread.join(SOON)
        release.set()
        assert [type(error) for error in caught] == [PanicError]


def test_a_connection_lost_during_the_login_is_tried_again(tmp_path: Path) -> None:
    logins: list[None] = []

    def drop_the_first(transport: paramiko.Transport) -> None:
        logins.append(None)
        if len(logins) == 1:
            transport.close()

    with ssh_server(drop_the_first) as address, session(address, tmp_path) as ssh:
        ssh.connect(SOON)
        assert ssh.connected
    assert len(logins) > 1


def test_a_login_without_an_answer_is_a_timeout_and_no_refused_key(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(_: paramiko.Transport) -> None:
        release.wait(60)

    with ssh_server(hang) as address, session(address, tmp_path) as ssh:
        with pytest.raises(WaitTimeoutError, match="SSH login of root"):
            ssh.connect(UNSCALED.after(1.5))
        release.set()


def test_closing_a_session_ends_a_connect_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    ssh = session(address, tmp_path)  # nothing listens there any more
    thread, caught = in_thread(lambda: ssh.connect(LONG))
    ssh.close()
    thread.join(SOON)
    assert [str(error).splitlines()[0] for error in caught] == [
        f"the SSH session to {address[0]}:{address[1]} is closed"
    ]
