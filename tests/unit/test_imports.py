"""The linters notice the violations that they are there for (``./run lint`` runs both)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
WITHOUT_CACHES = shutil.ignore_patterns("__pycache__")


def imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Check the layers of a tree."""
    return subprocess.run(
        [TOOLS / "lint-imports", "--no-cache", "--no-logo"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library, the fixtures and the configuration."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("harness", "fixtures"):
        shutil.copytree(ROOT / name, folder / name, ignore=WITHOUT_CACHES)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_tree_keeps_the_layers(tree: Path) -> None:
    process = imports(tree)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("console/text.py", "import harness.machine", "Imports in harness go one way"),
        ("console/text.py", "import harness.ssh", "Imports in harness go one way"),
        ("profiles/terms.py", "import harness.services", "Imports in harness go one way"),
        ("evidence/run.py", "import harness.machine", "Imports in harness go one way"),
        ("errors.py", "import harness.deadline", "Imports in harness go one way"),
        ("cli/doctor.py", "import pytest", "Only harness.pytest_plugin imports pytest"),
        ("lost.py", "", "Imports in harness go one way"),
        (
            "spec.py",
            "def f() -> None:\n    from fixtures import releases",
            "The library imports neither fixtures nor suites nor tests",
        ),
        ("../fixtures/releases.py", "import tests.moments", "Fixtures import no suite and no test"),
    ],
)
def test_a_violation_of_the_layers_is_noticed(
    tree: Path, module: str, line: str, contract: str
) -> None:
    path = tree / "harness" / module
    text = path.read_text() if path.exists() else None
    try:
        path.write_text(f"{text or ''}\n{line}\n")
        process = imports(tree)
    finally:
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    assert process.returncode == 1, process.stdout
    assert f"{contract} BROKEN" in process.stdout


def banned(path: str, code: str) -> bool:
    """Return whether ruff finds a banned name in the code of a file."""
    process = subprocess.run(
        [TOOLS / "ruff", "check", "--select=TID251", f"--stdin-filename={path}", "-"],
        input=code,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode in (0, 1), process.stderr
    return "TID251" in process.stdout


@pytest.mark.parametrize("path", ["harness/console/x.py", "fixtures/x.py", "suites/boot/test_x.py"])
@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(1)\n",
        "from asyncio import sleep\n",
        "import os\nos.environ['A']\n",
        "from os import environ as e\n",
        "import os\nos.getenv('A')\n",
    ],
)
def test_sleeping_and_reading_the_environment_are_banned(path: str, code: str) -> None:
    assert banned(path, code)


@pytest.mark.parametrize("path", ["harness/paths.py", "harness/artifacts/_guard.py"])
def test_some_modules_may_read_the_environment(path: str) -> None:
    assert not banned(path, "import os\nos.environ['A']\n")
