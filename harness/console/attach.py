"""The interactive mode of a console: joins a person's terminal to the guest's until Ctrl-].

The log, the recording and the watchers stay active. The terminal shows output that is read from
the log, so a terminal that falls behind never stops the guest. While it is attached, the person's
terminal answers the guest's queries, and Harness does not.
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
from harness.deadline import UNSCALED

ESCAPE_KEY: Final = 0x1D
"""The byte of Ctrl-], which detaches, as in telnet and ``virsh console``."""

_STEP: Final = 4096
_SHOWN_BEFORE: Final = 2048

_RESTORE: Final = (
    b"\x1b[!p"  # soft reset: attributes, margins, cursor visible
    b"\x1b[?7h"  # line wrap, which SeaBIOS switches off
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l"  # mouse, bracketed paste
)

_ALTERNATE: Final = re.compile(rb"\x1b\[\?(?:1049|1047|47)([hl])")


def attach(stream: Stream, stdin: int, stdout: int) -> str:
    """Join a terminal to a console until the person detaches or either side ends.

    Args:
        stream: The stream of the console.
        stdin: The descriptor to read keys from. A terminal is in raw mode until the call returns.
        stdout: The descriptor to show output on.

    Returns:
        ``left`` if the person pressed Ctrl-], ``closed`` if the console ended, ``gone`` if the
        person's terminal ended.
    """
    saved = termios.tcgetattr(stdin) if os.isatty(stdin) else None
    changed = Signal()
    stream.listen(changed)
    stream.queries.enabled = False
    start = stream.total
    out = _own_output(stdout)
    try:
        if saved is not None:
            tty.setraw(stdin)
        return _join(stream, stdin, out, changed, max(0, start - _SHOWN_BEFORE))
    finally:
        stream.queries.enabled = True
        stream.unlisten(changed)
        changed.close()
        if saved is not None:
            # TCSADRAIN would block on a terminal that no longer reads.
            termios.tcsetattr(stdin, termios.TCSANOW, saved)
        if os.isatty(out):
            _restore_window(stream, start, out)
        os.close(out)


def _own_output(stdout: int) -> int:
    """Return a descriptor that writes to ``stdout`` without blocking; ``stdout`` is unchanged."""
    if os.isatty(stdout):
        try:
            return os.open(os.ttyname(stdout), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            pass  # a terminal of another mount namespace has no name here
    return os.dup(stdout)


def _write(out: int, data: bytes) -> int:
    try:
        return os.write(out, data)
    except BlockingIOError:
        return 0


def _join(stream: Stream, stdin: int, stdout: int, changed: Signal, shown: int) -> str:
    poller = select.poll()
    poller.register(stdin, select.POLLIN)
    poller.register(changed, select.POLLIN)
    writing = False
    reported = None
    changed.set()
    while True:
        for fd, event in poller.poll():
            if fd == stdin:
                typed = os.read(stdin, _STEP) if event & select.POLLIN else b""
                if not typed:
                    return "gone"
                keys, leave, _ = typed.partition(bytes([ESCAPE_KEY]))
                # A guest that does not read loses the keys: a person must not wait for it.
                stream.outbox.send(keys, UNSCALED.after(1.0))
                if leave:
                    return "left"
            elif fd == changed.fileno():
                changed.clear()
            else:
                if event & (select.POLLERR | select.POLLHUP):
                    return "gone"
                part = stream.read(shown, min(stream.total, shown + _STEP))
                shown += _write(stdout, part)
        failure = stream.failures.current
        if shown < stream.total:
            if not writing:
                poller.register(stdout, select.POLLOUT)
                writing = True
            continue
        if writing:
            poller.unregister(stdout)
            writing = False
        if failure is not None and failure is not reported:
            reported = failure
            note = f"\r\n[harness: {failure.kind.__name__}; Ctrl-] leaves]\r\n"
            if failure.final:
                return "closed"
            _write(stdout, note.encode())


def _restore_window(stream: Stream, start: int, stdout: int) -> None:
    restore(stream.read(max(start, stream.total - (1 << 20)), stream.total), stdout)


def restore(recent: bytes, stdout: int) -> None:
    """Undo what a guest's output may have done to a terminal.

    Args:
        recent: The output that was shown last.
        stdout: The terminal.
    """
    switches = _ALTERNATE.findall(recent)
    leave_alternate = b"\x1b[?1049l" if switches and switches[-1] == b"h" else b""
    _write(stdout, leave_alternate + _RESTORE + b"\r\n")
