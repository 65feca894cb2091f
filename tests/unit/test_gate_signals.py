"""The handling of the signals that end a process."""

from __future__ import annotations

import signal
import threading

from harness.gate.signals import END, handling_end


def test_both_signals_reach_the_handler_and_the_old_handlers_return() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    caught: list[int] = []
    with handling_end(lambda number, frame: caught.append(number)):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
    assert caught == [signal.SIGTERM, signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


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
