"""The signals that end a process, and what they leave of its terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

Handler = Callable[[int, FrameType | None], None]

END: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A supervisor ends the process, Ctrl-C does, or its terminal was closed."""


@contextlib.contextmanager
def handling_end(handler: Handler, signals: Sequence[signal.Signals] = END) -> Iterator[None]:
    """Call a handler at the signals that end a process; the old handlers return at the end.

    Where ``SIGHUP`` is ignored it stays so: nohup(1) has asked for that. Only the main thread can set
    handlers (Python's library reference, ``signal``, "Signals and threads"): in another one nothing
    changes.

    Args:
        handler: Gets the signal's number and the frame that it interrupted.
        signals: The signals.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _handling(handler))
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def passing_on(
    words: Sequence[str], signals: Sequence[signal.Signals] = END
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program and pass signals on to it, also those that came before it had started.

    Args:
        words: The command.
        signals: The signals.

    Raises:
        OSError: The program cannot be started.
    """
    early: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if started:
            started[0].send_signal(number)
        else:
            early.append(number)

    with handling_end(pass_on, signals), subprocess.Popen(words) as process:
        started.append(process)
        for number in early:
            process.send_signal(number)
        yield process


def _handling(handler: Handler) -> Handler:
    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminals()
        handler(number, frame)

    return handle


def leave_closed_terminals() -> None:
    """Let the descriptors of closed terminals lead to ``/dev/null``; callable in a signal handler.

    Each use of a terminal that was closed fails with ``EIO`` (Linux, ``drivers/tty/tty_io.c``,
    ``hung_up_tty_fops``): the first line that a process prints at its end would be its last.
    """
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, descriptor, inheritable=os.get_inheritable(descriptor))
                os.close(nowhere)
