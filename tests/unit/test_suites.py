"""What holds for all suites, so that the wheel can carry them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted((ROOT / "suites").rglob("*.py"))


def roots(text: str) -> set[str]:
    """Return the top-level names that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_suite_imports_harness_pytest_and_the_standard_library(path: Path) -> None:
    foreign = roots(path.read_text()) - {"harness", "pytest"} - sys.stdlib_module_names
    assert foreign == set()


def test_every_form_of_import_is_seen() -> None:
    text = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i as j\n"
    assert roots(text) == {"a", "c", "d", "", "i"}


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports a test file by its bare name, and refuses the second of a name."""
    names = [path.name for path in SUITES if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
