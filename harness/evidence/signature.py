"""Signatures: what failures of one cause have in common, as a digest that is the same in each run.

A signature is made from four things: the test without its parameters, the step that failed, the verdict,
and the first line of the failure. Of each text, what differs from run to run is left out: numbers,
hexadecimal digits, paths, times. So the same panic of the same test has one signature on each
architecture, at each address and in each folder, and another failure of that test has another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_MOST: Final = 2000
"""Characters of a text that count. A guest may print a line without end."""

_EXCEPTION: Final = re.compile(r"^(?:\w+\.)*(\w+): ?", re.ASCII)
"""The name of an exception's class, with which pytest begins a failure's first line."""

_NOISE: Final = (
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.I | re.ASCII), "<uuid>"),
    (re.compile(r"\b[a-z][a-z0-9+.-]{0,15}://[^\s'\"<>)]+", re.I | re.ASCII), "<url>"),
    # Two names at least: "and/or" is no path, nor is a lone "/".
    (re.compile(r"(?<![\w.])~?(?:/[\w.@%+~:-]+){2,}/?", re.ASCII), "<path>"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.I | re.ASCII), "<mac>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.I | re.ASCII), "<hex>"),
    # A digest or an address has a digit; "feedface" alone may be a word, and a number has no letter.
    (re.compile(r"\b(?=[a-f]*[0-9])[0-9a-f]{7,}\b", re.I | re.ASCII), "<hex>"),
    (re.compile(r"[0-9]+(?:[.,:][0-9]+)*", re.ASCII), "<n>"),
    (re.compile(r"\s+"), " "),
)


def normalize(text: str) -> str:
    """Return the first line of a text that is not empty, without what differs from run to run.

    ``PanicError: CPU 3 at 0xffff8123`` becomes ``PanicError: CPU <n> at <hex>``. It takes linear time.
    """
    head = text[:_MOST].strip()
    line = head.splitlines()[0] if head else ""
    for pattern, word in _NOISE:
        line = pattern.sub(word, line)
    return line.strip()


def signature(test: str, verdict: str, message: str, *, step: str = "") -> str:
    """Return the signature of a failure: 16 hexadecimal digits.

    Args:
        test: pytest's node id; its parameters do not count, so neither does the architecture.
        verdict: The verdict, before a known failure is recognised.
        message: The failure's text; its first line counts.
        step: The step that failed, as :func:`failed_step` returns it; empty if there was none.
    """
    parts = (test.partition("[")[0], normalize(step), verdict, normalize(message))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def failed_step(
    folder: Path | None, message: str, clean: Callable[[str], str] = lambda text: text
) -> str:
    """Return the name of the innermost step that a failure ended; empty if it ended none.

    A test may catch the error of a step and fail by something else: a step counts if its error is the
    failure's. Where several ended by it, as on all machines of a cluster, the first by name counts, not
    the first in time.

    Args:
        folder: The test's evidence, which has a ``timeline.json``.
        message: The failure's text.
        clean: What took the declared secrets out of that text; the evidence may still have them.
    """
    lines = _EXCEPTION.sub("", message.strip()).splitlines()
    if folder is None or not lines or not (cause := lines[0].strip()):
        return ""
    try:
        steps: list[dict[str, Any]] = json.loads((folder / "timeline.json").read_text())["steps"]
        ended = [
            (-int(each["depth"]), clean(str(each["name"])))
            for each in steps
            if each["outcome"] not in ("passed", "running")
            and clean(each["error"]).strip() == cause
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A full disk, or a file that another program has written.
        return ""
    return min(ended)[1] if ended else ""
