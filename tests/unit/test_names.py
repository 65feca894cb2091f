"""A name says what the value is: participles that fit any value are refused as names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "bench", "fixtures", "harness", "images", "runners", "suites", "tests")

VAGUE = re.compile(r"_*(?:(?:found|given|made|taken|told)(?:_.*)?|done)")
EVENT = "threading.Event"  # "done" says what an event means


def programs() -> Iterator[Path]:
    """Yield Python's files of the project; a program without a suffix names Python in its first line."""
    yield from ROOT.glob("*.py")
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                yield path
            elif not path.suffix and path.is_file():
                with path.open("rb") as file:
                    if re.match(rb"#!.*python", file.readline(200)):
                        yield path


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of all that a module binds, attributes included."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name


def vague(source: str) -> list[str]:
    """Return the vague names of a source, each with its line."""
    lines = source.splitlines()
    return [
        f"{line}: {name}"
        for line, name in names(ast.parse(source))
        if VAGUE.fullmatch(name) and not (name.endswith("done") and EVENT in lines[line - 1])
    ]


def test_names_say_what_the_values_are() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{each}"
        for path in programs()
        for each in vague(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "name what the value is (match, paths, process):\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("found = re.match('a', text)", "found"),
        ("def run(given): ...", "given"),
        ("run = lambda taken: 0", "taken"),
        ("def found_in(text): ...", "found_in"),
        ("self._made = {}", "_made"),
        ("class told: ...", "told"),
        ("for made_of, each in pairs: ...", "made_of"),
        ("if (found := look()): ...", "found"),
        ("import tomllib as made", "made"),
        ("done = subprocess.run(['ls'])", "done"),
    ],
)
def test_a_vague_name_is_refused(source: str, name: str) -> None:
    assert vague(source) == [f"1: {name}"]


@pytest.mark.parametrize(
    "source",
    [
        "done = threading.Event()",
        "def serve(done: threading.Event): ...",
        "class End(StrEnum):\n    DONE = 'done'",
        "def test_it_is_found(): ...",
        "names['found'] = match",
        "wait(future.done)",
    ],
)
def test_a_name_that_says_it_is_not_refused(source: str) -> None:
    assert not vague(source)
