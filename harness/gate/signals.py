"""The signals that end a process, handled for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

END: Final = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def handling_end(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a handler at ``SIGTERM`` and at ``SIGINT``; the old handlers return at the end.

    Only the main thread can set handlers (Python's library reference, ``signal``, "Signals and
    threads"): in another one nothing changes.
    """
    numbers = END if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
