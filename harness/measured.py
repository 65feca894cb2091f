"""Small files in the cache: what was measured on this host, kept for the next process."""

from __future__ import annotations

from pathlib import Path

from harness import jsonfile


def read_text(path: Path) -> str:
    """Return a file's text, empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def store(path: Path, content: object) -> None:
    """Write JSON in one step, so that a reader finds it whole or not at all.

    Raises:
        OSError: if it cannot be written; the folder is made if it is absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonfile.write(path, content)
