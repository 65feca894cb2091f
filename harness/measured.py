"""Small files in the cache: what was measured on this host, kept for the next process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path


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
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        try:
            json.dump(content, file)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
