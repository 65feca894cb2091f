"""A person at the console: their terminal and the guest's, joined until Ctrl-].

Everything goes on meanwhile: the log, the recording, the watchers. What the person sees is read
from the log, so that a terminal that does not keep up never stops the guest. Their terminal answers
the guest's queries itself.
"""

from __future__ import annotations

import os
import re
import select
import termios
import tty
from typing import Final

from harness.console.outbox import Signal
from harness.console.stream import Stream
from harness.deadline import after

LEAVE: Final = 0x1D
"""Ctrl-], as with telnet and virsh console."""

_STEP: Final = 4096
_SHOWN_BEFORE: Final = 2048

_RESTORE: Final = (
    b"\x1b[!p"  # soft reset: attributes, margins, cursor shown
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l"  # mouse, bracketed paste
)

_ALTERNATE: Final = re.compile(rb"\x1b\[\?(?:1049|1047|47)([hl])")


def attach(stream: Stream, stdin: int, stdout: int) -> str:
    """Join a terminal and a console until the person leaves, or either of them ends.

    Args:
        stream: The console's stream.
        stdin: The descriptor the person types at; a terminal is switched to raw mode and back.
        stdout: The descriptor they look at.

    Returns:
        Why it ended: ``left``, ``closed`` (the console) or ``gone`` (the person's terminal).
    """
    saved = termios.tcgetattr(stdin) if os.isatty(stdin) else None
    news = Signal()
    stream.listen(news)
    stream.queries.enabled = False
    start = stream.total
    out = _own_output(stdout)
    try:
        if saved is not None:
            tty.setraw(stdin)
        return _join(stream, stdin, out, news, max(0, start - _SHOWN_BEFORE))
    finally:
        stream.queries.enabled = True
        stream.unlisten(news)
        news.close()
        if saved is not None:
            # Now: draining would wait for a person who does not look.
            termios.tcsetattr(stdin, termios.TCSANOW, saved)
        if os.isatty(out):
            _restore_window(stream, start, out)
        os.close(out)


def _own_output(stdout: int) -> int:
    """Return a descriptor for the output that never blocks, without changing the caller's."""
    if os.isatty(stdout):
        try:
            return os.open(os.ttyname(stdout), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            pass  # a terminal of another namespace has no name here
    return os.dup(stdout)


def _write(out: int, data: bytes) -> int:
    try:
        return os.write(out, data)
    except BlockingIOError:
        return 0


def _join(stream: Stream, stdin: int, stdout: int, news: Signal, shown: int) -> str:
    poller = select.poll()
    poller.register(stdin, select.POLLIN)
    poller.register(news, select.POLLIN)
    looking = False
    told = None
    news.set()
    while True:
        for fd, event in poller.poll():
            if fd == stdin:
                typed = os.read(stdin, _STEP) if event & select.POLLIN else b""
                if not typed:
                    return "gone"
                keys, leave, _ = typed.partition(bytes([LEAVE]))
                # Nobody waits for a guest that does not read, least of all a person.
                stream.outbox.send(keys, after(1.0, scaled=False))
                if leave:
                    return "left"
            elif fd == news.fileno():
                news.clear()
            else:
                if event & (select.POLLERR | select.POLLHUP):
                    return "gone"
                part = stream.read(shown, min(stream.total, shown + _STEP))
                shown += _write(stdout, part)
        failure = stream.failures.current
        if shown < stream.total:
            if not looking:
                poller.register(stdout, select.POLLOUT)
                looking = True
            continue
        if looking:
            poller.unregister(stdout)
            looking = False
        if failure is not None and failure is not told:
            told = failure
            note = f"\r\n[harness: {failure.kind.__name__}; Ctrl-] leaves]\r\n"
            if failure.final:
                return "closed"
            _write(stdout, note.encode())


def _restore_window(stream: Stream, start: int, stdout: int) -> None:
    recent = stream.read(max(start, stream.total - (1 << 20)), stream.total)
    switches = _ALTERNATE.findall(recent)
    leave_alternate = b"\x1b[?1049l" if switches and switches[-1] == b"h" else b""
    _write(stdout, leave_alternate + _RESTORE + b"\r\n")
