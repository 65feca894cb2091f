"""Reads YAML documents and keeps the line of each key.

PyYAML drops the lines when it builds values, and silently keeps the last of two equal keys. The
tree of nodes has both, so it is read first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import CatalogError

Location = tuple[str | int, ...]
"""The keys and indexes that lead to a value."""


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file.

    Attributes:
        path: The file.
        data: The parsed content.
        lines: The line, counted from 1, of each key and of each item of a list.
        texts: The source text of each scalar: ``1.10`` and ``1.1`` are one number and two texts.
    """

    path: Path
    data: Any
    lines: dict[Location, int]
    texts: dict[Location, str] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """Return ``file:line`` of a value, or of the nearest mapping or list around an absent one."""
        return f"{self.path}:{self.line(location)}"

    def line(self, location: Location) -> int:
        """Return the line of a value, or of the nearest mapping or list around an absent one."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def read(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        CatalogError: The file cannot be read, is not YAML, or repeats a key.
    """
    try:
        # utf-8-sig: some editors write a byte order mark, which YAML allows.
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path}:1: cannot be read: {error}") from error
    try:
        node = loader.get_single_node()
        lines: dict[Location, int] = {(): 1}
        if node is None:
            return Document(path, None, lines)
        texts: dict[Location, str] = {}
        for location, line, value in _walk(node, ()):
            if location in lines:
                raise CatalogError(
                    f"{path}:{line}: duplicate key {'.'.join(map(str, location))!r};"
                    f" it is also on line {lines[location]}"
                )
            lines[location] = line
            if isinstance(value, yaml.ScalarNode):
                texts[location] = str(value.value)
        return Document(path, loader.construct_document(node), lines, texts)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise CatalogError(f"{path}:{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CatalogError(f"{path}:1: not YAML: {error}") from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int, yaml.Node]]:
    """Yield the location, the line and the value of each key and of each item of a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, str(key.value))
            yield here, key.start_mark.line + 1, value
            yield from _walk(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*location, index)
            yield here, value.start_mark.line + 1, value
            yield from _walk(value, here)
