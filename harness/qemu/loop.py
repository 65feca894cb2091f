"""The one thread that runs an asyncio loop, for all monitors and processes of this interpreter.

Processes are started in this thread as well: Linux delivers a parent-death signal when the *thread*
that forked ends (``PR_SET_PDEATHSIG(2const)``), and this one ends only with the interpreter.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from harness.deadline import Deadline

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def get() -> asyncio.AbstractEventLoop:
    """Return the loop; the first call starts its thread."""
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            started = threading.Event()
            loop = asyncio.new_event_loop()

            def serve() -> None:
                asyncio.set_event_loop(loop)
                loop.call_soon(started.set)
                loop.run_forever()

            threading.Thread(target=serve, name="harness-loop", daemon=True).start()
            started.wait()
            _loop = loop
        return _loop


def submit(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the loop; cancelling the future, from any thread, cancels it."""
    return asyncio.run_coroutine_threadsafe(coroutine, get())


def result(future: concurrent.futures.Future[T], deadline: Deadline) -> T:
    """Wait for a coroutine that was submitted and return its result.

    Raises:
        TimeoutError: The deadline passed; the coroutine is cancelled.
        concurrent.futures.CancelledError: The future was cancelled.
    """
    try:
        deadline.wait(lambda left: concurrent.futures.wait([future], left).done)
        return future.result(0)
    except (concurrent.futures.TimeoutError, KeyboardInterrupt):
        future.cancel()
        raise


def run(coroutine: Coroutine[Any, Any, T], deadline: Deadline) -> T:
    """Run a coroutine on the loop and return its result.

    Raises:
        TimeoutError: The deadline passed; the coroutine is cancelled.
    """
    return result(submit(coroutine), deadline)


def later(seconds: float, function: Callable[[], object]) -> None:
    """Call a short function in the loop's thread, some seconds from now; callable from any thread."""
    loop = get()
    loop.call_soon_threadsafe(loop.call_later, seconds, function)


def call(function: Callable[[], T]) -> T:
    """Call a short function in the loop's thread and return its result."""

    async def wrapper() -> T:
        return function()

    return asyncio.run_coroutine_threadsafe(wrapper(), get()).result()
