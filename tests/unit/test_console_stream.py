"""The drain thread: all output is logged in bounded memory, and failures end waits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import deadline
from harness.console import Console
from harness.deadline import UNSCALED
from harness.errors import (
    DiskFullError,
    EmergencyModeError,
    GuestStoppedError,
    HarnessError,
    OopsError,
    PanicError,
    QemuExitedError,
    WaitTimeoutError,
)
from harness.scope import Scope
from tests.unit.test_console_support import SOON, GuestEnd, at_once, line, open_console

PANIC = b"\r\n[    1.234567] Kernel panic - not syncing: sysrq triggered crash\r\n"


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_every_byte_is_logged_without_any_wait(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    with open_console(tmp_path) as (console, guest):
        guest.sendall(data)
        guest.sendall(b"END")
        console.expect_exact("END", deadline=SOON)
        assert (tmp_path / "serial.log").read_bytes() == data + b"END"


def test_a_second_console_appends_to_the_log_and_counts_from_its_own_start(tmp_path: Path) -> None:
    for boot in (b"first", b"second"):
        with open_console(tmp_path) as (console, guest):
            guest.sendall(boot)
            assert console.expect(r"\w+(first|second)?", deadline=SOON).start == 0
            console.expect_exact("t" if boot == b"first" else "d", deadline=SOON, since=0)
            assert console.since(0).encode() == boot
    assert (tmp_path / "serial.log").read_bytes() == b"firstsecond"


def test_since_returns_the_output_after_a_mark(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"before")
        console.expect_exact("before", deadline=SOON)
        mark = console.mark()
        guest.sendall(b"after \xff")
        console.expect_exact(b"\xff", deadline=SOON)
        assert console.since(mark) == "after �"


def test_a_timeout_shows_the_pattern_the_last_output_and_the_silence(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\x1b[1mStarting \x1b[32mfoo\x1b[0m\r\n")
        console.expect_exact("foo", deadline=SOON)
        with pytest.raises(WaitTimeoutError) as raised:
            console.expect("login: ", deadline=at_once())
        error = raised.value
        assert "'login: '" in error.waited_for
        assert error.last_output == "Starting foo"
        assert error.silent is not None and 0 < error.silent < SOON
        assert str(tmp_path / "serial.log") in str(error)


def test_output_ends_the_silence(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        threading.Event().wait(0.3)
        before = console.silent_for()
        guest.sendall(b"word")
        console.expect("word", deadline=SOON)
        assert console.silent_for() < before


def test_a_watched_prompt_without_a_newline_ends_the_wait(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"line\r\n")
        console.expect("line\r\n", deadline=SOON)
        guest.sendall(b"(initramfs) ")
        with pytest.raises(EmergencyModeError):
            console.expect("never", deadline=SOON)


def test_the_end_of_the_connection_ends_a_wait(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"last words")
        guest.close()
        with pytest.raises(QemuExitedError, match="last words"):
            console.expect("more", deadline=SOON)
        console.expect_exact("last words", deadline=SOON, since=0)
        console.clear_failure()
        with pytest.raises(QemuExitedError):
            console.expect("more", deadline=SOON)


def test_on_eof_explains_the_end_of_the_connection(tmp_path: Path) -> None:
    with open_console(tmp_path, on_eof=lambda: GuestStoppedError("off")) as (console, guest):
        guest.close()
        with pytest.raises(GuestStoppedError, match="off"):
            console.expect("more", deadline=SOON)


def test_a_failure_replaces_the_end_of_the_connection(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.close()
        with pytest.raises(QemuExitedError):
            console.expect("more", deadline=SOON)
        console.fail(GuestStoppedError("powered off"))
        with pytest.raises(GuestStoppedError):
            console.expect("more", deadline=SOON)


@pytest.mark.parametrize("wait", ["expect", "screen", "send", "run", "login"])
def test_fail_ends_any_wait_in_another_thread(tmp_path: Path, wait: str) -> None:
    with open_console(tmp_path) as (console, guest):
        if wait == "run":
            console._talk.driver.active = True
        raised: list[BaseException] = []
        started = threading.Event()

        waits: dict[str, Callable[[], object]] = {
            "expect": lambda: console.expect("never", deadline=deadline.NEVER),
            "screen": lambda: console.wait_for_screen("never", deadline=deadline.NEVER),
            "send": lambda: console.send(b"x" * (1 << 24), deadline=deadline.NEVER),
            "run": lambda: console.run("true", deadline=deadline.NEVER),
            "login": lambda: console.login(deadline=deadline.NEVER),
        }

        def work() -> None:
            started.set()
            try:
                waits[wait]()
            except HarnessError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        if wait == "send":
            guest.recv(1)  # the send has started
        console.fail(QemuExitedError("QEMU died"))
        thread.join(SOON)
        assert [type(error) for error in raised] == [QemuExitedError]


def test_closing_ends_a_wait_in_another_thread(tmp_path: Path) -> None:
    near, far = line()
    console = Console(near, log=tmp_path / "log", cast=None, name="guest")
    raised: list[BaseException] = []

    def work() -> None:
        try:
            console.expect("never", deadline=deadline.NEVER)
        except HarnessError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    console.close()
    console.close()
    thread.join(SOON)
    far.close()
    assert len(raised) == 1 and "closed" in str(raised[0])


def test_output_from_before_a_failure_still_matches(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"one two " + PANIC + b"three")
        with pytest.raises(PanicError):
            console.expect("never", deadline=SOON)
        console.expect_exact("one", deadline=SOON, since=0)
        console.expect_exact("two", deadline=SOON)
        with pytest.raises(PanicError):
            console.expect_exact("three", deadline=SOON)


def test_a_failure_of_another_machine_ends_waits_at_once_but_spares_earlier_output(
    tmp_path: Path,
) -> None:
    scope = Scope("test")
    machines = [scope.child("machine a"), scope.child("machine b")]
    with open_console(tmp_path) as (console, guest):
        machines[0].add(console)
        guest.sendall(b"one two")
        console.expect_exact("two", deadline=SOON, since=0)
        raised: list[BaseException] = []

        def work() -> None:
            try:
                console.expect("never", deadline=deadline.NEVER)
            except HarnessError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        panic = PanicError("the kernel of machine b panicked")
        machines[1].fail(panic)
        thread.join(SOON)
        assert raised == [panic]
        guest.sendall(b" three")
        console.expect_exact("one", deadline=SOON, since=0)
        console.expect_exact("two", deadline=SOON, since=0)
        with pytest.raises(PanicError):
            console.expect_exact("three", deadline=SOON)
        with pytest.raises(PanicError):
            console.send("x", deadline=SOON)


def test_seconds_are_stretched_by_the_scale_and_a_deadline_is_not(tmp_path: Path) -> None:
    near, far = line()
    scale = deadline.Scale(3.0)
    with Console(near, log=tmp_path / "log", cast=None, name="guest", scale=scale) as console, far:
        for limit, seconds in ((0.02, 0.06), (UNSCALED.after(0.05), 0.05)):
            with pytest.raises(WaitTimeoutError) as raised:
                console.expect("never", deadline=limit)
            assert raised.value.seconds >= seconds
        with console.expecting(PanicError) as panic:
            assert panic.wait(0.01) is None


def test_a_failure_stays_until_it_is_cleared(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(PANIC)
        for _ in range(2):
            with pytest.raises(PanicError, match="sysrq triggered crash") as raised:
                console.expect("login", deadline=SOON)
            assert str(tmp_path / "serial.log") in str(raised.value)
        with pytest.raises(PanicError):
            console.send("x")
        with pytest.raises(PanicError):
            console.check()
        assert [sighting.watcher.name for sighting in console.clear_failure()] == ["panic"]
        guest.sendall(b"login: ")
        console.expect("login: ", deadline=SOON)
        console.check()


def test_a_panic_replaces_the_oops_before_it(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\r\n[    1.000000] BUG: kernel NULL pointer dereference, address: 0\r\n")
        with pytest.raises(OopsError):
            console.expect("never", deadline=SOON)
        guest.sendall(PANIC + b"END")
        arrived = UNSCALED.after(SOON)
        while len(console.sightings) < 2 and not arrived.expired:
            threading.Event().wait(0.01)
        with pytest.raises(PanicError):
            console.expect("never", deadline=SOON)


def test_an_expected_error_is_recorded_and_ends_no_wait(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        with console.expecting(PanicError) as expected:
            assert not expected
            guest.sendall(PANIC)
            sighting = expected.wait(UNSCALED.after(SOON))
            assert sighting is not None and "sysrq" in sighting.line
            guest.sendall(b"Rebooting")
            console.expect("Rebooting", deadline=SOON)
        console.check()
        assert len(console.sightings) == 1
        guest.sendall(PANIC)
        with pytest.raises(PanicError):
            console.expect("never", deadline=SOON)


def test_an_unexpected_error_ends_the_wait(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest), console.expecting(OopsError):
        guest.sendall(PANIC)
        with pytest.raises(PanicError):
            console.expect("never", deadline=SOON)


def test_the_wait_for_an_expected_error_ends_at_its_deadline(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, _), console.expecting(PanicError) as expected:
        assert expected.wait(at_once()) is None


def test_an_ignored_error_ends_no_wait(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        console.ignore(PanicError)
        guest.sendall(PANIC + b"END")
        console.expect("END", deadline=SOON)
        assert len(console.sightings) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full: run on Linux")
def test_a_full_disk_fails_the_next_wait_and_the_drain_continues(tmp_path: Path) -> None:
    near, far = line()
    with Console(near, log=Path("/dev/full"), cast=None, name="guest") as console, far:
        far.sendall(b"x" * (1 << 22))  # more than the wire holds, so the drain must read
        with pytest.raises(DiskFullError, match="/dev/full"):
            console.expect("never", deadline=SOON)
        assert console.last_output().startswith("xxx")


def test_a_guest_that_does_not_read_times_out_the_send(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, _), pytest.raises(WaitTimeoutError, match="to take"):
        console.send(b"x" * (1 << 24), deadline=at_once())


def test_answers_to_queries_never_land_inside_a_send(tmp_path: Path) -> None:
    count, lines = 200, []
    with open_console(tmp_path) as (console, guest):
        line = b"<" + b"x" * 5000 + b">"

        def read() -> None:
            data = b""
            while data.count(b">") < 2 * count:
                data += guest.recv(1 << 16)
            lines.append(data)

        def ask() -> None:
            for _ in range(60):
                guest.sendall(b"\x1b[5n")

        def write() -> None:
            for _ in range(count):
                console.send(line, deadline=SOON)

        threads = [threading.Thread(target=read), threading.Thread(target=ask)]
        threads += [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    assert lines
    assert lines[0].count(line) == 2 * count
    assert set(lines[0].replace(line, b"").split(b"\x1b[0n")) == {b""}


def _flood(guest: GuestEnd, data: bytes, times: int) -> float:
    started = time.thread_time()
    for _ in range(times):
        guest.sendall(data)
    return time.thread_time() - started


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[  OK  ] Started the quick brown fox.\r\n" * 2000, id="lines"),
        pytest.param(b"a" * 65536, id="one endless line"),
        pytest.param(b"-BUG: " * 11000, id="an endless line of needles"),
        pytest.param(b"xBUG: \r\n" * 8000, id="lines of needles"),
        pytest.param(b"\x1b[6n" * 16000, id="queries"),
        pytest.param(b"\x1b" * 65536, id="escapes"),
        pytest.param(b"\x1b]0;" + b"t" * 65000, id="a title without end"),
        pytest.param(b"\xff\xc3" * 32000, id="invalid UTF-8"),
    ],
)
def test_time_is_linear_in_the_output(tmp_path: Path, data: bytes) -> None:
    # Four times the output takes about four times the CPU time; quadratic would be sixteen.
    spent = []
    for times in (4, 16):
        with open_console(tmp_path) as (console, guest):
            before = time.process_time()
            _flood(guest, data, times)
            guest.sendall(b"\r\nEND")
            console.expect_exact("\r\nEND", deadline=6 * SOON)
            spent.append(time.process_time() - before)
    assert spent[1] < 8 * spent[0] + 0.1


def test_memory_is_bounded_for_any_amount_of_output(tmp_path: Path) -> None:
    data = b"[  OK  ] Started the quick brown fox, and so on.\r\n" * 20000
    total = 200 << 20
    with open_console(tmp_path) as (console, guest):
        _flood(guest, data, 8)
        before = _rss()
        _flood(guest, data, total // len(data))
        guest.sendall(b"END")
        # The search starts 200 MB behind.
        assert console.expect_exact("END", deadline=6 * SOON).end == console.mark()
        assert console.mark() > total
        assert _rss() - before < 64 << 20
    assert (tmp_path / "serial.log").stat().st_size > total
    assert (tmp_path / "serial.cast").stat().st_size < total / 2
