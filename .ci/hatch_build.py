"""Puts the suites and the images of the checkout into the wheel, below ``harness/_bundled``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("suites", "images")


def bundled(root: Path) -> dict[str, str]:
    """Return the place in the wheel of each file of the bundled folders.

    Raises:
        ValueError: A folder holds a symbolic link, which a wheel cannot hold.
    """
    places = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root)
            if path.is_symlink():
                raise ValueError(f"{name} is a symbolic link; a wheel holds files only")
            if path.is_file() and "__pycache__" not in name.parts:
                places[str(path)] = f"harness/_bundled/{name.as_posix()}"
    return places


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the folders to a wheel, but not to an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to those that hatchling includes."""
        if version != "editable":
            build_data["force_include"].update(bundled(Path(self.root)))
