"""A running test's machines from outside: sockets, names, requests, and the mirror of consoles."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console as Terminal

from harness.cli import ps
from harness.console import Console
from harness.console.outbox import Signal
from harness.console.text import plain
from harness.errors import UsageError
from harness.evidence.timeline import Timeline
from harness.live import client, mirror, runtime
from harness.live.client import Process
from harness.live.server import Server
from harness.machine import Machine
from harness.ssh.key import KeyPair
from tests.unit.test_console_support import SOON, GuestEnd, open_console

HOSTILE = b"\x1b]0;owned\x07\x1b[2Jharmless\x9b31m \xe2\x80\xae end\r\n"
"""It sets the title, erases the screen, changes the colour and turns the direction of text."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of sockets, whose path is longer than a socket's address can be."""
    base = tmp_path / ("long" * 30)
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return base / "harness"


@dataclass(eq=False)
class FakeMachine:
    """What the server asks of a machine."""

    console: Any
    evidence: Path
    timeline: Timeline
    name: str = "node"
    pid: int = 77
    running: bool = True
    powered_off: bool = False
    failure: Exception | None = None
    provenance: dict[str, str] = field(default_factory=lambda: {"image": "kite", "version": "1"})
    spec: Any = field(default_factory=lambda: SimpleNamespace(arch="x86_64"))
    os: Any = field(default_factory=lambda: SimpleNamespace(account=SimpleNamespace(user="ada")))
    key: KeyPair = field(default_factory=lambda: KeyPair("PRIVATE", "PUBLIC"))

    def port(self, guest: int) -> tuple[str, int]:
        assert guest == 22
        return "127.0.0.1", 4711

    @property
    def display(self) -> Any:
        raise UsageError("machine node has no display")


@dataclass
class Guest:
    """A server with one machine, and the guest's end of its console."""

    server: Server
    machine: FakeMachine
    console: Console
    wire: GuestEnd


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with open_console(tmp_path) as (console, wire):
        machine = FakeMachine(console, tmp_path, Timeline(title="test_a.py::test_b"))
        server = Server("run-1", "gw0")
        server.add(cast(Machine[Any], machine))
        try:
            yield Guest(server, machine, console, wire)
        finally:
            server.close()


def only(name: str = "node") -> client.Target:
    return client.target(name, client.processes())


# --- sockets ----------------------------------------------------------------------------------


def test_only_the_user_can_reach_the_socket_and_it_ends_with_the_server(
    guest: Guest, folder: Path
) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    key = Path(only().ask("ssh")["key"])
    assert key.stat().st_mode & 0o777 == 0o600
    guest.server.close()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert client.processes() == []


KILLED = """
import os, sys
from pathlib import Path
from harness.live import runtime
endpoint = runtime.listen()
endpoint.keys.mkdir()
(endpoint.keys / "key").touch()
print(endpoint.path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept_and_nothing_else(guest: Guest, folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert set(runtime.sockets()) == {guest.server.path, path}
        process.send_signal(signal.SIGKILL)
        process.wait(SOON)
    assert path.exists()
    assert runtime.sockets() == [guest.server.path]
    assert {each.name for each in folder.iterdir()} == {"lock", guest.server.path.name}


def test_a_new_server_sweeps_too(folder: Path) -> None:
    first = runtime.listen()
    first.listener.close()  # as if its process had ended
    second = runtime.listen()
    assert list(folder.glob("*.sock")) == [second.path]
    second.listener.close()


def test_a_run_without_a_runtime_folder_uses_the_cache_and_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with monkeypatch.context() as bare:
        bare.delenv("XDG_RUNTIME_DIR")
        endpoint = runtime.listen()
    assert endpoint.path.parent == tmp_path / "cache" / "live"
    assert runtime.sockets() == [endpoint.path]
    endpoint.listener.close()


# --- requests ---------------------------------------------------------------------------------


def test_a_machine_says_what_it_does_waits_included(guest: Guest) -> None:
    timeline = guest.machine.timeline
    guest.wire.sendall(HOSTILE + b"login: ")
    guest.console.expect("login:")
    with (
        timeline.step("boot", machine="node"),
        timeline.waiting("wait for login", machine="node", limit=60),
    ):
        data = only().data
    assert (data["step"], data["limit"], data["test"]) == (
        "wait for login",
        60,
        "test_a.py::test_b",
    )
    assert data["console"] == "login:"
    assert (data["image"], data["arch"], data["ssh"]) == ("kite", "x86_64", "127.0.0.1:4711")
    assert only().data["step"] == ""


def test_ssh_gets_user_port_and_key(guest: Guest) -> None:
    way = only().ask("ssh")
    assert (way["user"], way["host"], way["port"]) == ("ada", "127.0.0.1", 4711)
    assert Path(way["key"]).read_text() == "PRIVATE"


def test_a_refusal_says_why(guest: Guest) -> None:
    with pytest.raises(UsageError, match="has no display"):
        only().ask("screenshot")
    with pytest.raises(UsageError, match="unknown request 'dance'"):
        client.ask(guest.server.path, "dance")
    with pytest.raises(UsageError, match="no test is paused"):
        client.ask(guest.server.path, "continue")
    target = only()
    guest.machine.running = False
    with pytest.raises(UsageError, match="the machine has ended"):
        target.ask("ssh")


@pytest.mark.parametrize(
    "request_", [b"{\n", b"[]\n", b"[" * 60_000 + b"\n", b"x" * 70_000, b"\xff\n"]
)
def test_a_broken_request_is_refused_and_the_next_is_answered(
    guest: Guest, request_: bytes
) -> None:
    connection = runtime.connect(guest.server.path)
    connection.sendall(request_)
    connection.shutdown(socket.SHUT_WR)
    answer = json.loads(connection.makefile("rb").readline())
    connection.close()
    assert answer["ok"] is False
    assert answer["error"].startswith("the request is ")
    assert only().data["machine"] == "node"


def test_continue_ends_a_pause(guest: Guest) -> None:
    signal_ = Signal()
    with guest.server.paused("test_a.py::test_b", "it broke", signal_):
        (process,) = client.processes()
        assert process.data["paused"] == {"test": "test_a.py::test_b", "error": "it broke"}
        client.ask(process.socket, "continue")
        assert os.read(signal_.fileno(), 1)
    (process,) = client.processes()
    assert process.data["paused"] is None
    signal_.close()


# --- the console ------------------------------------------------------------------------------


def attached(guest: Guest) -> tuple[socket.socket, dict[str, Any]]:
    connection = runtime.connect(guest.server.path)
    connection.sendall(json.dumps({"do": "attach", "machine": 77}).encode() + b"\n")
    answer = bytearray()
    while not answer.endswith(b"\n"):
        answer += connection.recv(1)
    return connection, json.loads(answer)


def until(connection: socket.socket | GuestEnd, text: bytes) -> None:
    seen = b""
    while text not in seen:
        part = connection.recv(4096)
        assert part, seen
        seen += part


def test_the_connection_becomes_the_console_and_the_test_sees_all_of_it(guest: Guest) -> None:
    connection, answer = attached(guest)
    assert answer == {"ok": True, "paused": False}
    guest.wire.sendall(b"hello\r\n")
    until(connection, b"hello")
    guest.console.expect("hello")
    connection.sendall(b"typed\n")
    until(guest.wire, b"typed\n")
    second, refused = attached(guest)
    assert "another terminal is attached" in refused["error"]
    second.close()
    connection.sendall(b"\x1d")
    assert connection.recv(1) == b""
    connection.close()


def test_the_end_of_a_pause_lets_go_of_the_console(guest: Guest) -> None:
    signal_ = Signal()
    with guest.server.paused("test_a.py::test_b", "", signal_):
        connection, answer = attached(guest)
        assert answer["paused"]
        guest.wire.sendall(b"hello\r\n")
        until(connection, b"hello")
    while connection.recv(4096):
        pass
    connection.close()
    signal_.close()


# --- names ------------------------------------------------------------------------------------


def process(run: str, worker: str, pid: int, *machines: tuple[str, int]) -> Process:
    data = {
        "run": run,
        "worker": worker,
        "pid": pid,
        "machines": [{"machine": name, "pid": qemu, "test": "t"} for name, qemu in machines],
    }
    return Process(Path("none"), data)


RUNS = [
    process("one", "gw0", 1, ("a", 10), ("b", 11)),
    process("one", "gw1", 2, ("a", 12)),
    process("two", "", 3, ("c", 13), ("c", 14)),
]


@pytest.mark.parametrize(
    ("name", "pid"),
    [("b", 11), ("one/b", 11), ("gw1/a", 12), ("one/gw0/a", 10), ("2/a", 12), ("14", 14)],
)
def test_a_name_is_as_long_as_it_has_to_be(name: str, pid: int) -> None:
    assert client.target(name, RUNS).data["pid"] == pid


@pytest.mark.parametrize(
    ("name", "message", "choices"),
    [
        ("a", "several machines are called 'a'", ["one/gw0/a", "one/gw1/a"]),
        ("two/c", "several machines are called 'two/c'", ["13", "14"]),
        ("d", "no running machine is called 'd'", ["one/gw0/a", "one/gw0/b", "13"]),
        ("two/a", "no running machine is called 'two/a'", ["one/gw1/a"]),
    ],
)
def test_a_name_that_is_wrong_lists_the_choices(
    name: str, message: str, choices: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        client.target(name, RUNS)
    assert caught.value.what == message
    assert all(f"    {choice}  (t)" in caught.value.hint for choice in choices)


def test_without_a_test_the_error_says_so() -> None:
    with pytest.raises(UsageError) as caught:
        client.target("a", [])
    assert caught.value.hint == "no test with a machine runs as this user"


# --- the mirror -------------------------------------------------------------------------------


def test_the_mirror_prints_all_lines_and_ends_with_the_console(tmp_path: Path) -> None:
    lines: list[str] = []
    with open_console(tmp_path) as (console, wire):
        wire.sendall(b"before\r\n")
        console.expect("before")
        thread = mirror.start(
            cast(Machine[Any], SimpleNamespace(name="n", console=console)), lines.append
        )
        wire.sendall(HOSTILE + b"login: ")
        console.expect("login:")
    thread.join(SOON)
    assert not thread.is_alive()
    assert lines[0] == "n| before"
    assert lines[-1] == "n| login:"
    text = "".join(lines)
    assert "harmless" in text
    assert text.isprintable()
    assert "owned" not in text


def test_the_mirror_leaves_out_what_it_cannot_keep_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "BEHIND", 100)
    lines: list[str] = []
    with open_console(tmp_path) as (console, wire):
        wire.sendall(b"x" * 50 + b"\r\n" + b"y" * 200 + b"\r\nend\r\n")
        console.expect("end")
        thread = mirror.start(
            cast(Machine[Any], SimpleNamespace(name="n", console=console)), lines.append
        )
    thread.join(SOON)
    assert lines[0] == f"n| [harness: 159 bytes are in {console.log} alone]"
    assert lines[-1] == "n| end"


def test_a_line_without_an_end_is_printed_in_pieces() -> None:
    lines: list[str] = []
    cut = mirror.Lines(lines.append, "n")
    for _ in range(100):
        cut.feed(b"z" * 1000)
    assert lines
    assert max(map(len, lines)) <= mirror.LONGEST + 3


# --- ps --watch -------------------------------------------------------------------------------


def turns(*acts: Callable[[], object]) -> Callable[[], object]:
    """Return a pause that does one thing each time."""
    left = iter(acts)

    def pause() -> None:
        next(left)()

    return pause


def says(guest: Guest, data: bytes) -> Callable[[], object]:
    def say() -> None:
        guest.wire.sendall(data)
        guest.console.expect_exact(data.strip(), SOON)

    return say


def test_watch_prints_a_machine_when_it_changes_and_ends_with_the_run(guest: Guest) -> None:
    out = io.StringIO()
    # Long, and not broken: a file has no edge.
    terminal = Terminal(file=out, width=40, highlight=False)
    pause = turns(says(guest, b"step one\n"), lambda: None, guest.server.close)
    assert ps.watch(terminal, pause) == 0
    lines = out.getvalue().splitlines()
    assert [line.partition("> ")[2].partition("  (silent")[0] for line in lines[:2]] == [
        "",
        "step one",
    ]
    assert lines[0].startswith("run-1/gw0  node  kite x86_64  running  no step")
    assert lines[2:] == ["run-1/gw0/node has ended", "the tests have ended"]


def test_watch_draws_a_line_for_each_machine_in_a_terminal(guest: Guest) -> None:
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=True, width=40, highlight=False)
    shots: list[str] = []

    def shoot() -> None:
        shots.append(out.getvalue())
        guest.wire.sendall(HOSTILE)
        guest.console.expect("end", SOON)

    pause = turns(shoot, lambda: shots.append(out.getvalue()), guest.server.close)
    assert ps.watch(terminal, pause) == 0
    first, second = (plain(each.encode()).splitlines() for each in shots)
    assert len(first) == 2
    assert first[1].startswith("  node  kite x86_64  running")
    assert all(len(line) <= 40 for line in first)
    assert len(second) == 4
    assert not {"\x1b]0;owned", "\x1b[31m", "\u202e"} & {*out.getvalue().split()}
    assert "owned" not in out.getvalue()
    assert out.getvalue().endswith("the tests have ended\n")


def test_watch_of_nothing_says_so() -> None:
    out = io.StringIO()
    assert ps.watch(Terminal(file=out), turns()) == 0
    assert out.getvalue() == "no test with a machine runs as this user\n"


# --- commands ---------------------------------------------------------------------------------


def test_each_command_of_a_run_says_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import main

    assert main(["ps"]) == 0
    assert capsys.readouterr().out == "no test with a machine runs as this user\n"
    for words in (["ssh", "a"], ["screenshot", "a"], ["continue"]):
        assert main(words) == 2
        assert "harness: error: no " in capsys.readouterr().err
