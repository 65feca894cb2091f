"""Which files of a project a test depends on: those that are opened, imported or named.

:class:`Tracer` sees the files and folders that Python opens and lists while tests are collected, and
which modules of the project were at it. :func:`named` reads the source of a module: what it imports, in
functions too, and which files of the project its texts name (``Path(__file__).parent / "data" /
"seed.yaml"``). :func:`closure` joins both, over any number of steps.

It does not see: what a test opens when it runs, under a name that is put together then; what programs
that a test starts open; whether a file exists. Harness' own package is not in it: a rule of
``gate.yaml`` says what a change of Harness selects.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

_HARNESS: Final = Path(__file__).resolve().parents[1]

_FOLDERS: Final = ("os.listdir", "os.scandir")
"""Audit events of folders that are listed (https://docs.python.org/3/library/audit_events.html)."""

_MOST_NAMES: Final = 400
"""Characters of a text that may be the name of a file."""


class Tracer:
    """Records who opens which file of a project; an audit hook, which stays until the process ends.

    Args:
        root: The folder of the project.

    Attributes:
        edges: What each file of the project opened, by paths relative to the root. A folder that was
            listed ends in ``/``.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._active = True
        self.edges: dict[str, set[str]] = {}

    def start(self) -> None:
        """Begin to record."""
        sys.addaudithook(self._hook)

    def stop(self) -> None:
        """End the recording."""
        self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or (event != "open" and event not in _FOLDERS):
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes)):
            return
        opened = self._inside(os.fsdecode(path))
        if opened is None:
            return
        frame = sys._getframe(1)
        if event in _FOLDERS:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return  # the cache of a search for a module
            opened += "/"
        while frame is not None:
            who = self._inside(frame.f_code.co_filename)
            if who is not None and who != opened:
                self.edges.setdefault(who, set()).add(opened)
            frame = frame.f_back  # type: ignore[assignment]

    def _inside(self, path: str) -> str | None:
        """Return a path relative to the root; ``None`` for one that is not of the project."""
        if not path or path.startswith("<"):
            return None
        if path.endswith(".pyc"):
            try:
                path = importlib.util.source_from_cache(_without_pytest(path))
            except ValueError:
                return None
        full = os.path.abspath(path)  # noqa: PTH100 - Path would open nothing either, and is slow
        if not full.startswith(self._root + os.sep):
            return None
        relative = full[len(self._root) + 1 :]
        return relative if _is_project(relative, full) else None


def _without_pytest(path: str) -> str:
    """Return the name that Python gives a compiled module which pytest has rewritten."""
    head, name = os.path.split(path)
    module, dot, tag = name.partition(".")
    return f"{head}/{module}{dot}{tag.partition('-pytest-')[0].removesuffix('.pyc')}.pyc"


def _is_project(relative: str, full: str) -> bool:
    parts = relative.split("/")
    if any(part.startswith(".") or part in ("site-packages", "__pycache__") for part in parts):
        return False
    return not (full + os.sep).startswith(str(_HARNESS) + os.sep)


def named(root: Path, file: str, search: Sequence[str] = ("",)) -> set[str]:
    """Return the files of a project that the source of a module imports or names.

    Args:
        root: The folder of the project.
        file: The module's path, relative to it.
        search: The folders in which modules are searched for, relative to the root; that of the file is
            one more.
    """
    try:
        tree = ast.parse((root / file).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set()
    here = PurePosixPath(file).parent
    files: set[str] = set()
    for path in _references(tree, here, (*search, str(here))):
        relative = os.path.normpath(path)
        if relative.startswith("..") or not _is_project(relative, str(root.resolve() / relative)):
            continue
        if (root / relative).is_file():
            files.add(relative)
    return files - {file}


def _references(tree: ast.AST, here: PurePosixPath, search: Sequence[str]) -> Iterator[str]:
    """Yield the paths, from the root, that a module may mean; most of them do not exist."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(alias.name, (), search)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            bases = search
            if node.level:
                bases = (str(here.joinpath(*[".."] * (node.level - 1))),)
            yield from _modules(node.module or "", names, bases)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            # The outermost one comes first; those inside are shorter, and harmless.
            if text := "/".join(_parts(node)):
                yield from (text, f"{here}/{text}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if 0 < len(text) <= _MOST_NAMES and "\n" not in text and "\0" not in text:
                yield from (text.lstrip("/"), f"{here}/{text}")
                if all(part.isidentifier() for part in text.split(".")):
                    # pytest_plugins, importlib.import_module
                    yield from _modules(text, (), search)


def _modules(name: str, members: Iterable[str], bases: Iterable[str]) -> Iterator[str]:
    parts = [part for part in name.split(".") if part]
    for base in bases:
        prefix = f"{base}/" if base else ""
        for length in range(1, len(parts) + 1):
            path = prefix + "/".join(parts[:length])
            yield from (f"{path}.py", f"{path}/__init__.py")
        package = prefix + "".join(f"{part}/" for part in parts)
        for member in members:
            yield from (f"{package}{member}.py", f"{package}{member}/__init__.py")


def _parts(node: ast.expr) -> list[str]:
    """Return the texts of ``a / "b" / "c"``, from the right as far as there are only texts."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
        return []
    if not isinstance(node.right, ast.Constant) or not isinstance(node.right.value, str):
        return []
    return [*_parts(node.left), node.right.value]


def search_path(root: Path) -> tuple[str, ...]:
    """Return the folders of a project in which this process searches for modules, from its root."""
    start = root.resolve()
    folders = [start, *(Path(entry).resolve() for entry in sys.path)]
    inside = (folder.relative_to(start) for folder in folders if folder.is_relative_to(start))
    return tuple(dict.fromkeys("" if folder == Path() else str(folder) for folder in inside))


def closure(
    root: Path,
    files: Iterable[str],
    edges: Mapping[str, Iterable[str]],
    search: Sequence[str] = ("",),
) -> dict[str, list[str]]:
    """Return all that each of several files depends on, sorted.

    Args:
        root: The folder of the project.
        files: The files of tests, relative to it.
        edges: What the tracer saw.
        search: As of :func:`named`.
    """
    direct: dict[str, set[str]] = {}

    def of(file: str) -> set[str]:
        if file not in direct:
            direct[file] = set(edges.get(file, ()))
            if file.endswith(".py"):
                direct[file] |= named(root, file, search)
        return direct[file]

    reached = {}
    for file in files:
        # Each conftest.py on the way from the root is a part of the file.
        starts = [file, *_conftests(root, file)]
        seen: set[str] = set(starts[1:])
        left = starts
        while left:
            for other in of(left.pop()) - seen:
                seen.add(other)
                left.append(other)
        reached[file] = sorted(seen - {file})
    return reached


def _conftests(root: Path, file: str) -> list[str]:
    folders = PurePosixPath(file).parents
    paths = (str(folder / "conftest.py") for folder in folders)
    return [path for path in paths if (root / path).is_file()]
