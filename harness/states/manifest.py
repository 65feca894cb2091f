"""The manifest of a saved state: its inputs, its parent, and how it was built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from harness import jsonfile
from harness.states.group import FORMAT as GROUP_FORMAT
from harness.states.snapshot import shape

if TYPE_CHECKING:
    from pydantic import ConfigDict

FILE: Final = "state.json"


def entry_id(name: str, key: str) -> str:
    """Return the name of the folder of a state's entry."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}-{key[:20]}"


@dataclass(frozen=True, slots=True)
class StateManifest:
    """The manifest of a saved state.

    Attributes:
        name: The name of the state.
        key: The digest of its inputs.
        inputs: Everything that decides its content, by name.
        parent: The entry of its parent; empty for a root.
        created: The time when it was built, in seconds of the epoch.
        seconds: The duration of the build.
        cold: Why it has no RAM; empty if it has.
        machines: The names of the machines of a state of a cluster; empty for a single machine.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    name: str
    key: str
    inputs: Mapping[str, str]
    parent: str
    created: float
    seconds: float
    cold: str
    machines: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> StateManifest | None:
        """Return the manifest in an entry's folder; ``None`` if it is missing, damaged or foreign."""
        try:
            return jsonfile.load(folder / FILE, cls, format=FORMAT)
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> None:
        """Write the manifest into an entry's folder, synced to the disk."""
        jsonfile.save(folder / FILE, self, format=FORMAT)


FORMAT: Final = f"{GROUP_FORMAT}.{shape(StateManifest)}"
"""The format of an entry. A state's key contains it, so a version never uses the entry of another."""


def is_foreign(folder: Path) -> bool:
    """Return whether another version of Harness built an entry; only that version can use it."""
    try:
        jsonfile.load(folder / FILE, StateManifest, format=FORMAT)
    except jsonfile.OtherFormatError:
        return True
    except (OSError, ValueError):
        pass
    return False
