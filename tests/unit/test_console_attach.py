"""Attaching: all bytes pass, Ctrl-] detaches, and the person's terminal is restored."""

from __future__ import annotations

import os
import pty
import select
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.console import Console
from tests.programs import need
from tests.unit.test_console_support import SOON, open_console, open_shell

PANIC = b"\r\n[    1.234567] Kernel panic - not syncing: crash\r\n"


class Person:
    """A person at a pseudo-terminal."""

    def __init__(self) -> None:
        self.fd, self.tty = pty.openpty()
        self.seen = b""
        self.outcome = ""

    def attach(self, console: Console) -> threading.Thread:
        def work() -> None:
            self.outcome = console.attach(self.tty, self.tty)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def see(self, text: bytes) -> None:
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], SOON)
            assert ready, self.seen
            self.seen += os.read(self.fd, 65536)


@pytest.fixture
def person() -> Iterator[Person]:
    person = Person()
    yield person
    os.close(person.fd)
    os.close(person.tty)


def test_bytes_pass_in_both_directions_and_the_terminal_is_restored(
    tmp_path: Path, person: Person
) -> None:
    before = termios.tcgetattr(person.tty)
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"earlier\r\nlogin: ")
        console.expect("login: ", deadline=SOON)
        thread = person.attach(console)
        person.see(b"login: ")  # output from before the attach
        guest.settimeout(SOON)
        person.type(b"root\x03\x1b[A\n")
        data = b""
        while len(data) < 9:
            data += guest.recv(100)
        assert data == b"root\x03\x1b[A\n"
        guest.sendall(b"\x1b[?1049h\x1b[6nPassword: ")
        person.see(b"\x1b[6nPassword: ")
        person.type(b"x\x1dignored")
        thread.join(SOON)
        assert person.outcome == "left"
        # The person's terminal answers queries meanwhile, not the console.
        assert guest.recv(100) == b"x"
        person.see(b"\x1b[?1049l")
        assert termios.tcgetattr(person.tty) == before
        assert b"Password: " in (tmp_path / "serial.log").read_bytes()
        guest.sendall(b"\x1b[5n")
        assert guest.recv(100) == b"\x1b[0n"


def test_the_end_of_the_guest_detaches(tmp_path: Path, person: Person) -> None:
    before = termios.tcgetattr(person.tty)
    with open_console(tmp_path) as (console, guest):
        thread = person.attach(console)
        guest.sendall(b"bye")
        person.see(b"bye")
        guest.close()
        thread.join(SOON)
    assert person.outcome == "closed"
    assert termios.tcgetattr(person.tty) == before


def test_a_panic_is_shown_and_does_not_detach(tmp_path: Path, person: Person) -> None:
    with open_console(tmp_path) as (console, guest):
        thread = person.attach(console)
        guest.sendall(PANIC)
        person.see(b"[harness: PanicError")
        guest.sendall(b"more")
        person.see(b"more")
        person.type(b"\x1d")
        thread.join(SOON)
    assert person.outcome == "left"


def test_the_end_of_the_persons_terminal_detaches(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open_console(tmp_path) as (console, _):
        os.close(writer)
        sink = os.open("/dev/null", os.O_WRONLY)
        assert console.attach(reader, sink) == "gone"
        os.close(sink)
    os.close(reader)


def test_a_terminal_that_does_not_read_does_not_block_the_guest(
    tmp_path: Path, person: Person
) -> None:
    with open_console(tmp_path) as (console, guest):
        thread = person.attach(console)
        for _ in range(100):
            guest.sendall(b"x" * 65536)
        while console.mark() < 100 * 65536:
            threading.Event().wait(0.01)
        person.type(b"\x1d")
        thread.join(SOON)
        assert person.outcome == "left"
        person.see(b"x")


def test_a_person_gets_a_prompt_in_place_of_the_shell_of_run(
    tmp_path: Path, person: Person
) -> None:
    need("bash")
    with open_shell(["bash", "--norc", "-i"], tmp_path) as (console, _):
        console.run("true", deadline=SOON)
        thread = person.attach(console)
        person.see(b"guest# ")
        person.type(b"echo he''re\r")
        person.see(b"here\r\n")
        person.type(b"\x1d")
        thread.join(SOON)
        assert not console.logged_in
        console.send_line()
        console.login(None, deadline=SOON)
        assert console.run("echo back", deadline=SOON).stdout == "back\n"
