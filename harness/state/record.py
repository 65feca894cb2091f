"""What a cached state says of itself, and what a listing of the cache says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.state.codec import shape
from harness.state.snapshot import FORMAT as SAVED

RECORD: Final = "state.json"


def entry_id(name: str, key: str) -> str:
    """Return the name of a state's folder."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}-{key[:20]}"


@dataclass(frozen=True, slots=True)
class Record:
    """What a cached state says of itself.

    Attributes:
        name: The state's name.
        key: The digest of its inputs.
        inputs: What made it, by name.
        parent: The entry of its parent; empty for a root.
        created: When it was made, in seconds of the epoch.
        seconds: How long that took.
        cold: Why it has no RAM; empty if it has.
    """

    name: str
    key: str
    inputs: Mapping[str, str]
    parent: str
    created: float
    seconds: float
    cold: str

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Return the record in an entry; ``None`` if there is none that is whole."""
        try:
            data: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                return None
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Write it, down to the disk."""
        data = {name: getattr(self, name) for name in self.__slots__}
        content = {"format": FORMAT, **data, "inputs": dict(self.inputs)}
        jsonfile.write(folder / RECORD, content, durable=True)


FORMAT: Final = f"{SAVED}.{shape(Record)}"
"""Of an entry; part of a state's key, so that no version takes an entry of another for its own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached state, as a listing tells it.

    Attributes:
        id: The name of its folder.
        path: Its folder.
        status: ``ready``, ``in use``, ``building``, ``interrupted``, ``damaged``, or ``foreign`` for
            what another version of Harness made.
        bytes: What it takes on disk.
        used: When it was last asked for, in seconds of the epoch.
        record: What it says of itself; ``None`` if that cannot be read.
        why: What is wrong with a damaged one.
    """

    id: str
    path: Path
    status: str
    bytes: int
    used: float
    record: Record | None
    why: str = ""


def is_foreign(folder: Path) -> bool:
    """Whether an entry was made by another version of Harness, which is left to that one."""
    try:
        return bool(json.loads((folder / RECORD).read_text(encoding="utf-8"))["format"] != FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False
