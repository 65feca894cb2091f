"""Draws a few operations on a line of time, in ASCII.

::

    c1 write 's1-c1-38' |===|            12.301 to 12.345 s
    c2 write 's1-c2-41'       |===|      12.400 to 12.410 s
    c0 read  's1-c1-38'             |==| 13.001 to 13.004 s

The columns show the order of the calls and returns, not their distance: two clients may contradict each
other in a millisecond, after an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.cluster.operation import Operation, Outcome

MOST_OPERATIONS: Final = 10
"""The operations that a drawing shows; more would not fit a line of 100 characters."""

UNKNOWN_LEGEND: Final = "? no answer: may have been applied at any later time, or never"

_MOST_VALUE: Final = 24
_MOST_NAME: Final = 8
_STEP: Final = 2


def short(value: str | None, most: int = _MOST_VALUE) -> str:
    """Return a value for people, on one line: it may hold any bytes of a guest, of any length."""
    if value is None:
        return "nothing"
    text = ascii(value[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def short_name(client: str) -> str:
    """Return the name of a client for people, on one line."""
    text = ascii(client[: _MOST_NAME + 1])[1:-1]
    return text if len(text) <= _MOST_NAME else text[: _MOST_NAME - 1] + "~"


def seconds(time: float) -> str:
    """Return a time of the history's clock."""
    return f"{time:.3f} s"


def draw(operations: Sequence[Operation]) -> list[str]:
    """Return one line for each operation, and a legend where one is needed.

    Args:
        operations: In the order of the lines; those above :data:`MOST_OPERATIONS` are counted.
    """
    shown = list(operations[:MOST_OPERATIONS])
    # A return at the same moment as a call comes after it: the two operations are concurrent.
    moments = sorted(
        {(op.start, 0) for op in shown} | {(op.done_by, 1) for op in shown if op.acknowledged}
    )
    column = {moment: index * _STEP for index, moment in enumerate(moments)}
    width = (len(moments) - 1) * _STEP + 1
    clients = [short_name(op.client) for op in shown]
    values = [short(op.value) for op in shown]
    most_client = max(map(len, clients), default=0)
    most_value = max(map(len, values), default=0)
    bars, times = [], []
    for op in shown:
        first = column[op.start, 0]
        if op.acknowledged:
            last = column[op.done_by, 1]
            bar, when = "|" + "=" * (last - first - 1) + "|", f"to {seconds(op.done_by)}"
        elif op.outcome is Outcome.FAILED:
            bar, when = "x", "refused"
        else:
            bar, when = "|" + "=" * (width - first - 1) + "?", "no answer"
        bars.append(" " * first + bar)
        times.append(f"{op.start:.3f} {when}")
    most_bar = max(map(len, bars), default=0)
    lines = [
        f"{client:{most_client}} {op.kind:5} {value:{most_value}} {bar:{most_bar}} {when}"
        for op, client, value, bar, when in zip(shown, clients, values, bars, times, strict=True)
    ]
    if more := len(operations) - len(shown):
        lines.append(f"and {more} more")
    if any(op.outcome is Outcome.UNKNOWN for op in shown):
        lines.append(UNKNOWN_LEGEND)
    return lines
