"""The code that decides the key of a state, wherever the package manager installed it.

The states that all images have live in ``harness.points``, and a wheel carries the suites. A change in
either must give a state another key, even in ``site-packages``.
"""

from __future__ import annotations

import importlib.util
import linecache
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import paths
from harness.states.graph import code_of

Load = Callable[..., types.ModuleType]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Return a folder of installed packages."""
    return tmp_path / "lib" / "site-packages"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that writes a module, and loads it under a name."""

    def write_and_load(name: str, file: Path, text: str, **names: object) -> types.ModuleType:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        vars(module).update(names)
        # Not the loader: it takes a cached compilation of a file of the same size and second.
        exec(compile(text, str(file), "exec"), vars(module))
        return module

    return write_and_load


HELPER = "def disk():\n    return {}\n"


@pytest.mark.parametrize(
    "steps",
    [
        "def steps(lab):\n    return lab.boot(disk())\n",
        "def steps(lab):\n    return lab.boot(points.disk())\n",
        "def inner(lab):\n    return points.disk()\ndef steps(lab):\n    return inner(lab)\n",
    ],
    ids=["by name", "in its module", "through another helper"],
)
def test_a_helper_in_harness_points_changes_the_key(
    load: Load, tmp_path: Path, packages: Path, steps: str
) -> None:
    def sources(size: int) -> dict[str, str]:
        points = load("harness.points", packages / "harness" / "points.py", HELPER.format(size))
        suite = load("suite_of_mine", tmp_path / "suite.py", steps, points=points, disk=points.disk)
        return code_of(suite.steps)

    assert sources(1) == sources(1)
    assert sources(1) != sources(2)


def test_a_helper_of_the_steps_in_harness_points_changes_the_key(
    load: Load, packages: Path
) -> None:
    def sources(size: int) -> dict[str, str]:
        text = HELPER.format(size) + "def live(lab):\n    return lab.boot(disk())\n"
        return code_of(load("harness.points", packages / "harness" / "points.py", text).live)

    assert sources(1) != sources(2)


@pytest.mark.parametrize("name", ["test_refusals", "conftest"])
def test_a_helper_of_an_installed_suite_changes_the_key(
    load: Load, packages: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """pytest imports a suite under its bare name, for its folder is no package."""
    bundled = packages / "harness" / "_bundled"
    monkeypatch.setattr(paths, "bundled", lambda folder: bundled / folder)

    def sources(size: int) -> dict[str, str]:
        text = HELPER.format(size) + "def steps(lab):\n    return lab.boot(disk())\n"
        return code_of(load(name, bundled / "suites" / "install" / f"{name}.py", text).steps)

    assert sources(1) == sources(1)
    assert sources(1) != sources(2)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("harness.network", "harness/network.py"),
        ("harness.pointsmen", "harness/pointsmen.py"),
        ("somelib", "somelib.py"),
    ],
)
def test_unrelated_library_code_leaves_the_key(
    load: Load, tmp_path: Path, packages: Path, name: str, file: str
) -> None:
    def sources(size: int) -> dict[str, str]:
        library = load(name, packages / file, HELPER.format(size))
        text = "def steps(lab):\n    return lab.boot(disk(), library.disk())\n"
        suite = load(
            "suite_of_mine", tmp_path / "suite.py", text, library=library, disk=library.disk
        )
        return code_of(suite.steps)

    assert sources(1) == sources(2)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1", "2"),
        ("b'a'", "b'b'"),
        ("re.compile('a')", "re.compile('b')"),
        ("pathlib.PurePosixPath('a')", "pathlib.PurePosixPath('b')"),
        ("{(1, 2): 3}", "{(1, 2): 4}"),
        ("{1: {'a'}}", "{1: {'b'}}"),
        ("('a', b'a')", "('a', b'b')"),
    ],
)
def test_a_constant_of_any_plain_type_changes_the_key(
    load: Load, tmp_path: Path, before: str, after: str
) -> None:
    def sources(value: str) -> dict[str, str]:
        text = f"import re, pathlib\nVALUE = {value}\ndef steps(lab):\n    return VALUE\n"
        return code_of(load("suite_of_mine", tmp_path / "suite.py", text).steps)

    assert sources(before) == sources(before)
    assert sources(before) != sources(after)


@pytest.mark.parametrize(
    "rest",
    [
        "ALL = (disk,)\ndef steps(lab):\n    return ALL[0]()\n",
        "ALL = {'a': disk}\ndef steps(lab):\n    return ALL['a']()\n",
        "class A:\n    def go(self):\n        return disk()\nclass B(A): ...\n"
        "def steps(lab):\n    return B().go()\n",
        "import functools\nclass A:\n"
        "    @functools.cached_property\n    def go(self):\n        return disk()\n"
        "def steps(lab):\n    return A().go\n",
        "import contextlib\nclass A:\n"
        "    @contextlib.contextmanager\n    def go(self):\n        yield disk()\n"
        "def steps(lab):\n    return A().go\n",
        "def steps(lab):\n    return [disk() for _ in range(2)]\n",
    ],
    ids=["tuple", "dict", "base class", "cached property", "decorated method", "comprehension"],
)
def test_a_helper_that_is_reached_indirectly_changes_the_key(
    load: Load, tmp_path: Path, rest: str
) -> None:
    def sources(size: int) -> dict[str, str]:
        text = HELPER.format(size) + rest
        return code_of(load("suite_of_mine", tmp_path / "suite.py", text).steps)

    assert sources(1) != sources(2)


def test_the_code_of_a_state_and_its_profile_is_the_same_in_each_process() -> None:
    program = (
        "from harness import points\nfrom harness.profiles.skiff import Skiff\n"
        "from harness.states.graph import code_of\n"
        "print(sorted(code_of(points.live.steps, points.settled.steps, *Skiff.__mro__[:-1]).items()))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(paths.__file__).parents[1])},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_helpers_of_the_real_points_count() -> None:
    from harness import points

    names = set(code_of(points.installed.steps))
    for helper in (
        "installs",
        "target_disk",
        "install_answers",
        "boot_installed",
        "installed_disk",
    ):
        assert f"harness.points.{helper}" in names


def test_the_helpers_of_a_profile_of_harness_count() -> None:
    from harness.profiles.skiff import Skiff

    assert "harness.profiles._skiff.settings" in code_of(*Skiff.__mro__[:-1])
