"""The rules of the house that a parser can see: who imports whom, who waits, who reads the host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up: a part imports from layers below its own, and from itself.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "jsonfile", "paths"}),
    frozenset({"deadline"}),
    frozenset({"host", "keys", "measured", "progress"}),
    frozenset({"speed"}),
    frozenset({"spec"}),
    frozenset({"catalog", "store", "seed", "qemu", "console", "ssh", "network", "admission"}),
    frozenset({"state", "turns"}),
    frozenset({"crash"}),
    frozenset({"machine"}),
    frozenset({"profiles", "cluster", "services"}),
    frozenset({"cli"}),
)

# Reads records, drives nothing: whoever has something to record may import it.
EVIDENCE = "evidence"
EVIDENCE_MAY_IMPORT = frozenset({"errors", "paths", "deadline", "host", "spec", EVIDENCE})

ENVIRONMENT = "harness/paths.py"
"""The one module that reads the environment."""

SLEEPS = {("time", "sleep"), ("asyncio", "sleep")}
READS = {("os", "environ"), ("os", "getenv"), ("os", "environb"), ("os", "getenvb")}

# A program of its own, run by its path: it hands its environment on and reads nothing of it.
HANDS_ON = frozenset({"harness/store/_guard.py"})


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.AST, package: str, *, typing: bool = False) -> Iterator[str]:
    """Yield the modules that a tree imports, by full name; those for type checkers if asked for."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node) and not typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # "from harness import console" imports the module of that name.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        yield from imports(node, package, typing=typing)


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def part_of(module: str) -> str:
    """Return the part of harness that a module belongs to; empty for harness itself or others."""
    names = module.split(".")
    return names[1] if names[0] == "harness" and len(names) > 1 else ""


def own_part(path: Path) -> str:
    names = path.relative_to(ROOT / "harness").parts
    return names[0].removesuffix(".py")


def may_import(part: str, other: str) -> bool:
    if part == other:
        return True
    if part == EVIDENCE:
        return other in EVIDENCE_MAY_IMPORT
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    if other == EVIDENCE:
        return level[part] > level["spec"]
    return level[other] < level[part]


def attributes(tree: ast.AST, names: set[tuple[str, str]]) -> Iterator[int]:
    """Yield the lines that use ``module.name``, or import it by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in names:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and any(
            (node.module, alias.name) in names for alias in node.names
        ):
            yield node.lineno


def test_every_part_has_its_layer() -> None:
    known = {name for layer in LAYERS for name in layer} | {EVIDENCE, "__init__", "__main__"}
    parts = {own_part(path) for path in sources("harness")}
    assert parts <= known, "give it a layer in this test, and a line in the design"


@pytest.mark.parametrize("path", sources("harness"), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    part = own_part(path)
    if part.startswith("__"):
        return
    others = {part_of(module) for module in imports(tree_of(path), package_of(path))} - {""}
    assert [other for other in sorted(others) if not may_import(part, other)] == []


@pytest.mark.parametrize("path", sources("harness"), ids=name_of)
def test_the_library_knows_no_pytest_and_no_fixture(path: Path) -> None:
    modules = imports(tree_of(path), package_of(path), typing=True)
    roots = {module.split(".")[0] for module in modules}
    assert roots.isdisjoint({"pytest", "_pytest", "fixtures", "suites", "tests", "conftest"})


@pytest.mark.parametrize("path", sources("fixtures"), ids=name_of)
def test_fixtures_know_no_suite(path: Path) -> None:
    roots = {module.split(".")[0] for module in imports(tree_of(path), package_of(path))}
    assert roots.isdisjoint({"suites", "tests", "bench"})


@pytest.mark.parametrize("path", sources("harness", "fixtures", "suites"), ids=name_of)
def test_nothing_sleeps(path: Path) -> None:
    assert list(attributes(tree_of(path), SLEEPS)) == []


@pytest.mark.parametrize("path", sources("harness", "fixtures", "suites"), ids=name_of)
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    if name_of(path) != ENVIRONMENT and name_of(path) not in HANDS_ON:
        assert list(attributes(tree_of(path), READS)) == []


def test_the_parser_sees_what_it_has_to() -> None:
    tree = ast.parse(
        "import time, os\n"
        "from asyncio import sleep\n"
        "from os import environ as e\n"
        "def f():\n"
        "    time.sleep(1); os.environ['A']; os.getenv('A')\n"
    )
    assert sorted(attributes(tree, SLEEPS)) == [2, 5]
    assert sorted(attributes(tree, READS)) == [3, 5, 5]


def test_the_parser_follows_every_form_of_import() -> None:
    tree = ast.parse(
        "import harness.qemu.argv\n"
        "from harness import console\n"
        "from ..ssh import run\n"
        "from . import other\n"
        "def f():\n"
        "    from harness.store import Store\n"
        "if TYPE_CHECKING:\n"
        "    from harness.machine import Machine\n"
    )
    found = {part_of(module) for module in imports(tree, "harness.seed")}
    assert found == {"qemu", "console", "ssh", "seed", "store"}
    assert "machine" in {part_of(m) for m in imports(tree, "harness.seed", typing=True)}


@pytest.mark.parametrize(
    ("part", "other", "allowed"),
    [
        ("store", "spec", True),
        ("store", "catalog", False),
        ("qemu", "console", False),
        ("machine", "console", True),
        ("console", "machine", False),
        ("profiles", "machine", True),
        ("evidence", "machine", False),
        ("evidence", "errors", True),
        ("machine", "evidence", True),
        ("errors", "evidence", False),
        ("cli", "profiles", True),
        ("profiles", "cli", False),
    ],
)
def test_the_rule_is_the_designs(part: str, other: str, allowed: bool) -> None:
    assert may_import(part, other) is allowed


def test_no_two_test_files_of_the_suites_have_one_name() -> None:
    """pytest imports a test file by its bare name, and stops at the second of a name."""
    names = [path.name for path in sorted((ROOT / "suites").rglob("test_*.py"))]
    assert sorted(names) == sorted(set(names))
