"""Waits for a pattern in the output, with the searchers of pexpect.

Of several patterns, the one whose match starts first in the output wins; of those, the first in the
list. The searchers read from the log, so a wait that starts gigabytes behind still sees all output.
The time is linear in the output: of searched output, only the last :data:`WINDOW` bytes are
searched again, so a longer match may be missed.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.console.known import remarks
from harness.console.stream import Stream
from harness.deadline import Deadline
from harness.errors import UsageError, WaitTimeoutError

WINDOW: Final = 16 * 1024
"""The default length in bytes up to which a match is certain to be found."""

BEFORE: Final = 1024 * 1024
"""The bytes of output before a match that :attr:`Match.before` holds at most."""

_CONTEXT: Final = 256
_STEP: Final = 128 * 1024
"""Bytes per search. A search holds the interpreter lock, and the drain thread waits for it."""

_NOISY: Final = 10

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes]


@dataclass(frozen=True, slots=True)
class Match:
    """A match in the output.

    Attributes:
        index: The index of the matching pattern.
        match: The match object, on bytes; for a plain text, the text as bytes.
        before: The output from the start of the search to the match; at most the last
            :data:`BEFORE` bytes of it.
        start: The offset of the match in the output, in bytes.
        end: The offset of the first byte after the match, where the next search starts.
    """

    index: int
    match: re.Match[bytes] | bytes
    before: str
    start: int
    end: int

    @property
    def text(self) -> str:
        """The matching text; invalid UTF-8 is replaced."""
        return self.group()

    def group(self, group: int | str = 0) -> str:
        """Return the text of a group; empty if the group did not take part in the match.

        Args:
            group: The number or the name of the group; 0 is the whole match.

        Raises:
            IndexError: The pattern has no such group.
        """
        if isinstance(self.match, bytes):
            if group != 0:
                raise IndexError("no such group")
            return self.match.decode("utf-8", "replace")
        text = self.match.group(group)
        return "" if text is None else text.decode("utf-8", "replace")


def compile_pattern(pattern: Pattern) -> re.Pattern[bytes]:
    """Return a pattern as a regular expression on bytes.

    As in pexpect, the dot matches newlines. A compiled expression keeps its own flags.

    Raises:
        UsageError: The pattern is not a regular expression.
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
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


def describe(patterns: Sequence[Pattern]) -> str:
    """Return the patterns as text for a message."""
    shown = []
    for pattern in patterns:
        source = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
        shown.append(
            repr(source.decode("utf-8", "replace") if isinstance(source, bytes) else source)
        )
    return " or ".join(shown)


_SPECIAL: Final = re.compile(rb"[\\*+?\[\](){}|^$.]")


def misread_text(patterns: Sequence[Pattern], output: bytes) -> str:
    """Return the hint for regular expressions that are in the output as plain texts; often empty."""
    for pattern in patterns:
        if not isinstance(pattern, re.Pattern) and _encoded(pattern) in output:
            return (
                "the output contains it as a plain text, and a text is a regular expression here:"
                f" expect_exact({pattern!r})"
            )
    return ""


def misread_expression(texts: Sequence[str | bytes], output: bytes) -> str:
    """Return the hint for plain texts that match as regular expressions; often empty."""
    for text in texts:
        if _SPECIAL.search(_encoded(text)):
            with contextlib.suppress(re.error):
                if re.search(_encoded(text), output, re.DOTALL):
                    return (
                        "a text is literal here; as a regular expression it would match:"
                        f" expect({text!r})"
                    )
    return ""


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def timeout_error(stream: Stream, waited_for: str, deadline: Deadline, hint: str = "") -> Exception:
    """Return the error for a wait on a console that reached its deadline.

    Args:
        stream: The stream of the console.
        waited_for: The event that did not happen: ``a shell prompt``.
        deadline: The deadline.
        hint: What to try next.
    """
    return WaitTimeoutError(
        f"{waited_for} on the console of {stream.name}",
        deadline,
        last_output=stream.tail(),
        silent=stream.silent_for(),
        remarks=remarks(stream),
        evidence=str(stream.log),
        hint=hint,
    )


def regex_searcher(patterns: Sequence[Pattern]) -> Any:
    """Return a searcher of pexpect for regular expressions."""
    from pexpect.expect import searcher_re

    return searcher_re([compile_pattern(pattern) for pattern in patterns])


def text_searcher(texts: Sequence[str | bytes]) -> Any:
    """Return a searcher of pexpect for plain texts."""
    from pexpect.expect import searcher_string

    return searcher_string([text.encode() if isinstance(text, str) else text for text in texts])


def search(
    stream: Stream,
    searcher: Any,
    start: int,
    deadline: Deadline,
    timed_out: Callable[[], Exception],
    *,
    window: int = WINDOW,
    asking: Iterator[float] | None = None,
) -> Match:
    """Wait until a searcher finds a match in the output.

    Args:
        stream: The stream of the console.
        searcher: A searcher of pexpect.
        start: The offset at which the search starts.
        deadline: When to give up.
        timed_out: Returns the error to raise at the deadline.
        window: The length in bytes up to which a match is certain to be found.
        asking: Yields seconds, and is resumed when the console was silent for as long; it asks the
            guest for output then. Steady output postpones that to :data:`_NOISY` times as long.

    Raises:
        HarnessError: The deadline passed, or the console failed and no earlier output matches.
    """
    position = start
    held = b""
    pause = math.inf if asking is None else next(asking, math.inf)
    resumed = time.monotonic()
    while True:
        quiet = max(0.0, min(pause, resumed + _NOISY * pause - time.monotonic()))
        left = deadline.timeout()
        timeout = quiet if left is None else min(quiet, left)
        end = stream.wait_past(position, None if math.isinf(timeout) else timeout)
        if end <= position:
            if deadline.expired:
                raise timed_out()
            # Otherwise the load has stretched the deadline, and the silence goes on.
            if asking is not None and timeout == quiet:
                pause = next(asking, math.inf)
                resumed = time.monotonic()
            continue
        while position < end:
            fresh = stream.read(position, min(end, position + _STEP))
            position += len(fresh)
            held += fresh
            index = searcher.search(held, len(fresh), len(fresh) + window)
            if index >= 0:
                base = position - len(held)
                return _match(stream, searcher, index, base, start)
            # The searcher skips the context, but lookbehinds can see it.
            held = held[-(window + _CONTEXT) :]


def _match(stream: Stream, searcher: Any, index: int, base: int, start: int) -> Match:
    at, end = base + searcher.start, base + searcher.end
    before = stream.read(max(start, at - BEFORE), at)
    return Match(index, searcher.match, before.decode("utf-8", "replace"), at, end)
