"""YAML documents that know the line of each of their keys.

PyYAML forgets where a value stood once it is built, and takes the last of two equal keys without a
word. So the node tree is read first: it gives the lines, and finds the duplicates.
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
        data: What it says.
        lines: The line, from 1, of each key and of each item of a list.
        texts: How each scalar stands in the file: 1.10 is another number's text than 1.1.
    """

    path: Path
    data: Any
    lines: dict[Location, int]
    texts: dict[Location, str] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """Return ``file:line`` of a value; of the nearest one around it if it is not there."""
        return f"{self.path}:{self.line(location)}"

    def line(self, location: Location) -> int:
        """Return the line of a value; of the nearest one around it if it is not there."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def read(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        CatalogError: if it cannot be read, is not YAML, or has a key twice.
    """
    try:
        # utf-8-sig: an editor may have put a byte order mark there, which YAML allows.
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path}:1: cannot be read: {error}") from error
    try:
        node = loader.get_single_node()
        lines: dict[Location, int] = {(): 1}
        if node is None:
            return Document(path, None, lines)
        for location, line in _walk(node, ()):
            if location in lines:
                raise CatalogError(
                    f"{path}:{line}: the key {'.'.join(map(str, location))!r} is there twice;"
                    f" the first is on line {lines[location]}"
                )
            lines[location] = line
        return Document(path, loader.construct_document(node), lines, dict(_texts(node, ())))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise CatalogError(f"{path}:{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CatalogError(f"{path}:1: not YAML: {error}") from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _walk(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*location, index)
            yield here, value.start_mark.line + 1
            yield from _walk(value, here)


def _texts(node: yaml.Node, location: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _texts(value, (*location, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _texts(value, (*location, index))
    elif isinstance(node, yaml.ScalarNode):
        yield location, str(node.value)
