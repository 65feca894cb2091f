"""JSON in files: written in one step, so that nobody ever reads half of one."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path


def write(path: Path, content: object, *, mode: int = 0o666, durable: bool = False) -> None:
    """Write JSON: whoever reads finds the file as it was before, or the new one whole.

    Args:
        path: The file; its folder is there.
        content: What ``json`` takes.
        mode: The file's permissions, less the process' umask.
        durable: Whether it is on the disk before anybody can read it, and so survives a power cut.

    Raises:
        OSError: if it cannot be written; the file is as it was before then.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            json.dump(content, output, indent=1)
            output.write("\n")
            output.flush()
            if durable:
                os.fsync(output.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
