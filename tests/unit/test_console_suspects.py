"""Words of a crash that a command prints, and crashes while a command runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.console import Console, shell, suspects
from harness.errors import (
    EmergencyModeError,
    GuestError,
    OopsError,
    PanicError,
    WaitTimeoutError,
)
from tests.unit.test_console_support import SHELLS, SOON, ShellGuest, open_shell

Shell = tuple[Console, ShellGuest]

PANIC = b"[   77.123456] Kernel panic - not syncing: sysrq triggered crash\r\n"
LAST = b"[   77.200000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n"
OOPS = b"[   77.000000] BUG: kernel NULL pointer dereference, address: 0\r\n"
EMERGENCY = b"\r\nYou are in emergency mode. After logging in, type\r\n"

LONG = "for i in 1 2 3 4 5 6 7 8 9; do printf '%4000s\\n' $i; done"


@pytest.fixture(params=SHELLS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    with open_shell(request.param, tmp_path) as pair:
        yield pair


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Shell]:
    with open_shell(["sh"], tmp_path) as pair:
        yield pair


class Splice:
    """Puts ``words`` into the line once, behind the first of ``needles``, however reads divide it.

    Args:
        needles: What the guest prints.
        words: What follows it.
        dies: Whether the line carries nothing any more after the words.
    """

    def __init__(self, *needles: bytes, words: bytes, dies: bool = False) -> None:
        self.spliced = False
        self._needles = needles
        self._words = words
        self._dies = dies
        self._seen = b""

    def __call__(self, data: bytes) -> bytes:
        if self.spliced:
            return b"" if self._dies else data
        before = len(self._seen)
        self._seen += data
        ends = [
            self._seen.find(needle) + len(needle)
            for needle in self._needles
            if needle in self._seen
        ]
        if not ends:
            return data
        self.spliced = True
        at = min(ends) - before
        return data[:at] + self._words + (b"" if self._dies else data[at:])


def slow(data: bytes) -> bytes:
    """Take the time of a slow line."""
    time.sleep(len(data) / 60_000)
    return data


def healthy(console: Console) -> None:
    """Assert that the console has seen no crash and still works."""
    assert console.run("echo fine", SOON).stdout == "fine\n"
    console.check()
    assert not console.sightings


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("printf 'BUG: 42 fixed the thing\\n'", "BUG: 42 fixed the thing\n"),
        ("grep -c '[    1.234567] Kernel panic - not syncing' /dev/null || true", "0\n"),
        ("grep -c '[    1.234567] BUG: x' /dev/null || true", "0\n"),
        ("echo 'Welcome to emergency mode!'", "Welcome to emergency mode!\n"),
        ("printf 'BUG: without a newline'", "BUG: without a newline"),
        ("printf '\\033[31mBUG: red\\033[0m\\n'", "\x1b[31mBUG: red\x1b[0m\n"),
        ("echo one\necho '[    1.234567] BUG: two'", "one\n[    1.234567] BUG: two\n"),
        ("echo '[    1.5] x'; echo '(initramfs) '", "[    1.5] x\n(initramfs) \n"),
    ],
)
def test_what_a_command_prints_is_no_crash(opened: Shell, command: str, output: str) -> None:
    console, _ = opened
    for _ in range(3):
        assert console.run(command, SOON).stdout == output
    healthy(console)


@pytest.mark.parametrize("length", [1, 200, 300, 5000, 200_000])
def test_a_printed_log_of_a_crash_is_no_crash(one: Shell, tmp_path: Path, length: int) -> None:
    console, _ = one
    text = (OOPS + PANIC + LAST + EMERGENCY).decode().replace("\r\n", "\n")
    text = "x" * length + "\n" + text + "y" * length + "\n" + text.rstrip()
    (tmp_path / "crash.log").write_text(text)
    assert console.run("cat crash.log", SOON).stdout == text
    healthy(console)


def test_noise_in_an_answer_with_such_words_is_no_crash(one: Shell) -> None:
    console, guest = one
    noise = b"[   12.345678] vda: detected capacity change\r\n"
    guest.tamper = splice = Splice(b"BUG: 42 fi", words=noise)
    command = "sleep 0.2; printf 'BUG: 42 %s the thing\\n' fixed"
    assert console.run(command, SOON).stdout == "BUG: 42 fixed the thing\n"
    assert splice.spliced
    healthy(console)


def test_a_copy_of_an_answer_that_comes_late_is_no_crash(
    one: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, _ = one
    monkeypatch.setattr(shell, "_ASK_QUIET", 0.1)
    monkeypatch.setattr(shell, "_ASK_FIRST", 0.1)
    mark = console.mark()
    result = console.run("sleep 1; printf 'BUG: 42 %s\\n' fixed", SOON)
    assert result.stdout == "BUG: 42 fixed\n"
    healthy(console)
    assert console.since(mark).count("BUG: 42 fixed") > 1


def test_the_rest_of_an_answer_behind_its_deadline_is_no_crash(one: Shell) -> None:
    console, guest = one
    guest.tamper = slow
    words = "i=0; while [ $i -lt 2000 ]; do printf 'BUG: %4000s\\n' $i; i=$((i+1)); done"
    with pytest.raises(WaitTimeoutError):
        console.run(words, 1.0)
    guest.tamper = lambda data: data
    healthy(console)


@pytest.mark.parametrize(("words", "kind"), [(OOPS, OopsError), (EMERGENCY, EmergencyModeError)])
def test_a_crash_within_an_answer_is_noticed(
    one: Shell, words: bytes, kind: type[GuestError]
) -> None:
    console, guest = one
    guest.tamper = Splice(b"   5\r\n", words=words)
    with pytest.raises(kind) as caught:
        console.run(LONG, SOON)
    assert f"expecting({kind.__name__})" in str(caught.value)
    guest.tamper = lambda data: data
    console.clear_failure()


def test_a_panic_within_an_answer_ends_the_run_soon(one: Shell) -> None:
    console, guest = one
    guest.tamper = Splice(b"   5\r\n", words=b"\r\n" + PANIC, dies=True)
    with pytest.raises(PanicError, match="silent") as caught:
        console.run(LONG, 10 * SOON)
    assert "then the guest was silent" in str(caught.value)
    console.forget_login()


def test_an_emergency_shell_within_an_answer_ends_the_run_soon(one: Shell) -> None:
    console, guest = one
    guest.tamper = Splice(b"   5\r\n", words=EMERGENCY, dies=True)
    with pytest.raises(EmergencyModeError):
        console.run(LONG, 10 * SOON)
    console.forget_login()


def test_a_panic_while_a_command_runs_ends_it_at_the_kernel_s_last_line(
    one: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, guest = one
    monkeypatch.setattr(console._stream.suspects, "_quiet", 10 * SOON)
    threading.Timer(0.3, guest.inject, [PANIC]).start()
    threading.Timer(0.5, guest.inject, [LAST]).start()
    with pytest.raises(PanicError):
        console.run("sleep 5", 10 * SOON)
    console.forget_login()


def test_a_panic_without_a_last_line_ends_the_run_soon(one: Shell) -> None:
    console, guest = one
    threading.Timer(0.3, guest.inject, [PANIC]).start()
    with pytest.raises(PanicError):
        console.run("sleep 15", 10 * SOON)
    console.forget_login()


def test_a_guest_that_answers_has_not_panicked(one: Shell) -> None:
    console, guest = one
    # As a program does that writes to /dev/kmsg.
    threading.Timer(0.3, guest.inject, [PANIC]).start()
    assert console.run("sleep 1; echo on", SOON).stdout == "on\n"
    healthy(console)


def test_a_guest_that_answers_after_a_broken_answer_has_not_panicked(one: Shell) -> None:
    console, guest = one
    guest.tamper = splice = Splice(b"   5\r\n", words=PANIC)
    assert console.run(LONG, SOON).stdout.count("\n") == 9
    assert splice.spliced
    with pytest.raises(WaitTimeoutError):
        console.expect("never printed", 3.0)  # longer than the silence that confirms a suspect
    healthy(console)


def test_a_silent_command_that_contains_such_words_is_no_crash(one: Shell) -> None:
    console, _ = one
    command = ": '[    1.234567] Kernel panic - not syncing'; sleep 4; echo on"
    assert console.run(command, SOON).stdout == "on\n"
    healthy(console)


@pytest.mark.parametrize(("words", "kind"), [(OOPS, OopsError), (EMERGENCY, EmergencyModeError)])
def test_a_crash_while_a_command_runs_ends_it_at_once(
    one: Shell, words: bytes, kind: type[GuestError], monkeypatch: pytest.MonkeyPatch
) -> None:
    console, guest = one
    monkeypatch.setattr(console._stream.suspects, "_quiet", 10 * SOON)
    threading.Timer(0.3, guest.inject, [words]).start()
    with pytest.raises(kind):
        console.run("sleep 5", 10 * SOON)
    console.forget_login()


def test_a_reset_confirms_a_panic(one: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    console, guest = one
    monkeypatch.setattr(console._stream.suspects, "_quiet", 10 * SOON)

    def crash() -> None:
        mark = console.mark()
        guest.inject(PANIC)
        console._stream.wait_past(mark + len(PANIC) - 1, SOON)
        console.forget_login()  # as the machine does at QEMU's RESET

    timer = threading.Timer(0.3, crash)
    timer.start()
    with pytest.raises(PanicError, match="reset"):
        console.run("sleep 5", 10 * SOON)
    timer.join()


def test_a_panic_within_an_answer_and_a_restart_end_the_run_as_a_panic(one: Shell) -> None:
    console, guest = one
    restart = b"[    0.000000] Linux version 6.12.0 (gcc)\r\n"
    guest.tamper = Splice(b"   5\r\n", words=b"\r\n" + PANIC + restart, dies=True)
    with pytest.raises(PanicError):
        console.run(LONG, 10 * SOON)
    console.forget_login()


def test_a_crash_behind_an_answer_is_noticed(one: Shell) -> None:
    console, guest = one

    guest.tamper = Splice(b"> \r\n", b">\r\n", words=OOPS)
    console.run("echo 'BUG: no crash'", SOON)
    guest.tamper = lambda data: data
    with pytest.raises(OopsError):
        console.expect("never printed", SOON)
    console.clear_failure()


def test_the_words_count_where_no_command_is_pending(one: Shell) -> None:
    console, guest = one
    console.run("echo 'BUG: 42'", SOON)
    guest.inject(b"BUG: 42\r\n")
    with pytest.raises(OopsError):
        console.expect("never printed", SOON)
    console.clear_failure()


@pytest.mark.parametrize("use", [Console.leave, lambda console: console.login(None, SOON)])
def test_an_interrupted_answer_hides_nothing_after_the_next_prompt(
    one: Shell, use: Callable[[Console], None]
) -> None:
    console, guest = one
    guest.tamper = slow
    with pytest.raises(WaitTimeoutError):
        console.run(
            "i=0; while [ $i -lt 2000 ]; do printf 'BUG: %4000s\\n' $i; i=$((i+1)); done", 1.0
        )
    guest.tamper = lambda data: data
    console.leave(SOON)
    use(console)
    guest.inject(OOPS)
    with pytest.raises(OopsError):
        console.expect("never printed", SOON)
    console.clear_failure()


def test_suspects_are_bounded(one: Shell) -> None:
    console, _ = one
    command = 'i=0; while [ $i -lt 3000 ]; do echo "[   $i.123456] BUG: $i"; i=$((i+1)); done'
    assert console.run(command, SOON).stdout.count("BUG") == 3000
    assert len(console._stream.suspects._held) == 0
    command_ = console._stream.suspects._current
    assert command_ is not None and len(command_.harmless) <= suspects._KEPT
    healthy(console)
