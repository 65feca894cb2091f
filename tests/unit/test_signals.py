"""The handling of the signals that end a process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.signals import END, handling_end, leave_closed_terminals, passing_on


@pytest.fixture(autouse=True)
def hangs_up() -> Iterator[None]:
    """Hear hangups, also where nohup(1) started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_the_signals_reach_the_handler_and_the_old_handlers_return() -> None:
    before = [signal.getsignal(number) for number in END]
    caught: list[int] = []
    with handling_end(lambda number, frame: caught.append(number)):
        for number in END:
            signal.raise_signal(number)
    assert caught == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    assert [signal.getsignal(number) for number in END] == before


def test_an_ignored_sighup_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with handling_end(lambda number, frame: None):
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL


def test_a_signal_that_comes_before_the_program_has_started_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = subprocess.Popen.__init__

    def signalled(self: Any, words: list[str]) -> None:
        signal.raise_signal(signal.SIGTERM)
        start(self, words)

    monkeypatch.setattr(subprocess.Popen, "__init__", signalled)
    with passing_on(["sleep", "600"]) as process:
        assert process.wait(60) == -signal.SIGTERM


def test_what_a_process_says_to_a_closed_terminal_goes_nowhere() -> None:
    ours, theirs = pty.openpty()
    os.write(theirs, b"x")
    os.close(ours)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(theirs, b"x")
    leave_closed_terminals()
    assert os.write(theirs, b"x") == 1
    assert os.fstat(theirs).st_rdev == Path(os.devnull).stat().st_rdev
    assert not os.get_inheritable(theirs)
    os.close(theirs)


def test_another_thread_leaves_the_handlers_as_they_are() -> None:
    inside: list[object] = []

    def run() -> None:
        with handling_end(lambda number, frame: None):
            inside.extend(signal.getsignal(number) for number in END)

    before = [signal.getsignal(number) for number in END]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == before
