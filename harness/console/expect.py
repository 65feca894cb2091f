"""Waiting for a pattern in the output, with pexpect's matcher.

pexpect's searchers decide what matches: of several patterns the one that begins first, of those the
first in the list. What they search comes from the log, so that a wait that begins gigabytes behind
still sees everything. Time is linear in the output: what has been searched is searched again only
for the last :data:`WINDOW` bytes, so that a match longer than that may be missed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.console.stream import Stream
from harness.deadline import Deadline
from harness.errors import UsageError, WaitTimeoutError

WINDOW: Final = 16 * 1024
"""Bytes; a match is at most this long."""

BEFORE: Final = 1024 * 1024
"""Bytes; of the output before a match, this much is kept."""

_CONTEXT: Final = 256
_STEP: Final = 128 * 1024
"""Bytes searched at a time: so long the drain may have to wait for the interpreter."""

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes]


@dataclass(frozen=True, slots=True)
class Match:
    """What was found.

    Attributes:
        index: Which of the patterns it was.
        match: The match, on bytes; for a plain text, its bytes.
        before: The output from where the wait began to the match; of much, the last
            :data:`BEFORE` bytes.
        start: Offset of the match in the output.
        end: Offset behind the match: the next wait begins there.
    """

    index: int
    match: re.Match[bytes] | bytes
    before: str
    start: int
    end: int

    @property
    def text(self) -> str:
        """What matched."""
        return self.group()

    def group(self, which: int | str = 0) -> str:
        """Return a group of the match as text; empty if it took no part.

        Raises:
            IndexError: if there is no such group.
        """
        if isinstance(self.match, bytes):
            if which != 0:
                raise IndexError("no such group")
            return self.match.decode("utf-8", "replace")
        found = self.match.group(which)
        return "" if found is None else found.decode("utf-8", "replace")


def compile_pattern(pattern: Pattern) -> re.Pattern[bytes]:
    """Return a pattern as a regular expression on bytes; as with pexpect, the dot fits newlines.

    A compiled expression keeps its own flags.

    Raises:
        UsageError: if it is no regular expression.
    """
    try:
        if isinstance(pattern, bytes):
            return re.compile(pattern, re.DOTALL)
        if isinstance(pattern, str):
            return re.compile(pattern.encode(), re.DOTALL)
        source = pattern.pattern
        if isinstance(source, bytes):
            return re.compile(source, pattern.flags)
        return re.compile(source.encode(), pattern.flags & ~re.UNICODE)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error


def describe(patterns: Sequence[Pattern]) -> str:
    """Return the patterns as a message names them."""
    shown = []
    for pattern in patterns:
        source = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
        shown.append(
            repr(source.decode("utf-8", "replace") if isinstance(source, bytes) else source)
        )
    return " or ".join(shown)


def timeout_error(stream: Stream, waited_for: str, deadline: Deadline, hint: str = "") -> Exception:
    """Return the error for a wait on a console that reached its deadline."""
    return WaitTimeoutError(
        f"{waited_for} on the console of {stream.name}",
        deadline.elapsed,
        last_output=stream.tail(),
        silent=stream.silent_for(),
        evidence=str(stream.log),
        hint=hint,
    )


def regex_searcher(patterns: Sequence[Pattern]) -> Any:
    """Return pexpect's searcher for regular expressions."""
    from pexpect.expect import searcher_re

    return searcher_re([compile_pattern(pattern) for pattern in patterns])


def text_searcher(texts: Sequence[str | bytes]) -> Any:
    """Return pexpect's searcher for plain texts."""
    from pexpect.expect import searcher_string

    return searcher_string([t.encode() if isinstance(t, str) else t for t in texts])


def search(
    stream: Stream,
    searcher: Any,
    start: int,
    deadline: Deadline,
    timed_out: Callable[[], Exception],
    *,
    window: int = WINDOW,
) -> Match:
    """Wait until a searcher finds something in the output from an offset on.

    Raises:
        HarnessError: what ``timed_out`` makes, at the deadline; or the console's failure, if there
            was no match before it.
    """
    position = start
    held = b""
    while True:
        end = stream.wait_past(position, deadline.timeout())
        if end <= position:
            raise timed_out()
        while position < end:
            fresh = stream.read(position, min(end, position + _STEP))
            position += len(fresh)
            held += fresh
            index = searcher.search(held, len(fresh), len(fresh) + window)
            if index >= 0:
                base = position - len(held)
                return _match(stream, searcher, index, base, start)
            # The context is not searched again, but lookbehinds see it.
            held = held[-(window + _CONTEXT) :]


def _match(stream: Stream, searcher: Any, index: int, base: int, start: int) -> Match:
    found, end = base + searcher.start, base + searcher.end
    before = stream.read(max(start, found - BEFORE), found)
    return Match(index, searcher.match, before.decode("utf-8", "replace"), found, end)
