"""Calls that run at the same time, all of which succeed or are undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def in_parallel(
    function: Callable[..., ResultT],
    *arguments: Iterable[Any],
    undo: Callable[[ResultT], object] | None = None,
) -> list[ResultT]:
    """Call a function for each set of arguments, each in a thread; return the results in their order.

    All calls end before it returns.

    Args:
        function: The function.
        *arguments: As for :func:`map`; all of one length.
        undo: Called with each result if another call failed.

    Raises:
        BaseException: The error of the first call, by their order, that failed.
    """
    sets = list(zip(*arguments, strict=True))
    if not sets:
        return []
    with ThreadPoolExecutor(len(sets)) as pool:
        calls = [pool.submit(function, *each) for each in sets]
    errors = [error for call in calls if (error := call.exception()) is not None]
    if not errors:
        return [call.result() for call in calls]
    if undo is not None:
        for call in calls:
            if call.exception() is None:
                undo(call.result())
    raise errors[0]
