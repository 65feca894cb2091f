"""The report as one HTML file that makes no request: a pure function of the record.

A policy in the page (Content Security Policy, level 3) forbids every request and every script and style
but the page's own, which it names by their digests. ``wasm-unsafe-eval`` lets the player compile the
terminal that it carries; it allows no script. What a guest said is in blocks of base64, and the page's
script shows it as text only.

The player of consoles is asciinema-player, which :data:`PLAYER` contains with its licence.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import Final

from harness import jsonfile
from harness.errors import StoreError, UsageError
from harness.evidence.report import blocks
from harness.evidence.report.record import Record

FILE: Final = "report.html"
PLAYER: Final = "asciinema-player"

SCRIPTS: Final = tuple(
    f"script/{name}.js" for name in ("base", "overview", "timeline", "test", "main")
)
"""The page's script, in parts that need no tool to be joined."""

_MARK: Final = "<!-- harness report -->"
_BLOCK: Final = re.compile(
    r'<script type="application/octet" id="block-(\w+)">([A-Za-z0-9+/=]*)</script>'
)
_LARGEST: Final = 512 * 1024 * 1024


def page(record: Record) -> str:
    """Return the HTML of a record."""
    script, style = "".join(map(_source, SCRIPTS)), _source("report.css")
    player, player_style = _source(f"{PLAYER}/player.js"), _source(f"{PLAYER}/player.css")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(script)} {_digest(player)} 'wasm-unsafe-eval'",
            f"style-src {_digest(style)} {_digest(player_style)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    # The player is unpacked when a console is shown first.
    further = {"player": _packed(player), "style": _packed(player_style)}
    octets = "\n".join(
        f'<script type="application/octet" id="block-{name}">{block}</script>'
        for name, block in (blocks.encode(record) | further).items()
    )
    return (
        _source("report.html")
        .replace("@POLICY@", policy)
        .replace("@MARK@", _MARK)
        .replace("@STYLE@", style)
        .replace("@BLOCKS@", octets)
        .replace("@SCRIPT@", script)
    )


def write(record: Record, path: Path) -> None:
    """Write the HTML of a record; a reader never sees half of it.

    Raises:
        StoreError: The file cannot be written.
    """
    try:
        jsonfile.write_text(path, page(record))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def read(path: Path) -> Record:
    """Return the record of a page that :func:`write` wrote, by this or another host.

    Raises:
        UsageError: The file is no report, or one of another format.
        StoreError: The file cannot be read.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} is too large for a report")
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    try:
        if _MARK not in content[:4096]:
            raise ValueError("it does not say so")
        return blocks.decode(dict(_BLOCK.findall(content)))
    except ValueError as error:
        raise UsageError(f"{path} is no report of Harness: {error}") from error


def _source(name: str) -> str:
    # As bytes: the player has carriage returns that are no ends of lines.
    return resources.files("harness.evidence.report").joinpath(name).read_bytes().decode()


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _packed(content: str) -> str:
    return base64.b64encode(zlib.compress(content.encode(), 9)).decode()
