"""The front door: the wheel, installed in an empty environment, serves a project without a checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.project import ROOT, Project
from tests.programs import need_module

Kite = Callable[[Project], None]

TEST = """\
from harness import Lab


def test_it_says_hello_over_ssh_and_on_the_console(lab: Lab) -> None:
    machine = lab.boot()
    machine.os.login()
    machine.succeed("echo hello > /tmp/greeting")
    assert machine.console.run("cat /tmp/greeting").stdout == "hello\\n"
    assert open("fixtures/greeting").read() == "hello\\n"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this checkout."""
    need_module("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of a new environment that has the wheel, and PyPI's ``fixtures``."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    process = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-input", str(wheel), "fixtures"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return python


@pytest.fixture
def outside(project: Project, installed_python: str) -> Project:
    """Return an empty folder of a project that has the installed wheel, and a folder ``fixtures/``."""
    project.python = installed_python
    project.write("fixtures/greeting", "hello\n")
    project.write("fixtures/__init__.py", "")
    return project


def test_the_wheel_holds_the_library_the_suites_and_the_images(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.split("/")[0] for name in names}
        script = archive.getinfo("harness/_bundled/images/micro/build")
    assert {top for top in tops if not top.endswith(".dist-info")} == {"harness"}
    assert "harness/_bundled/suites/boot/test_live.py" in names
    assert "harness/_bundled/suites/conftest.py" in names
    assert script.external_attr >> 16 & 0o111, "the build script is executable"
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_ten_lines_test_an_image_of_the_folder(outside: Project, kite: Kite) -> None:
    kite(outside)
    outside.write("test_kite.py", TEST)
    result = outside.pytest("-q")
    assert result.status == 0, result.text
    assert "1 passed" in result.text


def test_the_installed_suites_judge_an_image_of_the_folder(outside: Project, kite: Kite) -> None:
    kite(outside)
    harness = str(Path(outside.python).with_name("harness"))
    result = outside.run(harness, "acceptance", "--image", "kite")
    assert result.status == 0, result.text
    assert "suites/boot/test_live.py" in result.text
    assert "failed" not in result.text.splitlines()[-1]
    (path,) = outside.folder.glob(".harness/runs/2*/results.json")
    results = json.loads(path.read_text())
    assert results["image"]["name"] == "kite"
    passed = [each["id"] for each in results["tests"] if each["verdict"] == "passed"]
    assert "suites/boot/test_live.py::test_power_on_to_login_on_the_console" in passed


def test_a_failing_suite_shows_the_suites_own_frames(outside: Project, kite: Kite) -> None:
    kite(outside)
    text = (outside.folder / "images/kite/image.yaml").read_text()
    outside.write("images/kite/image.yaml", text.replace("password: micro", "password: wrong"))
    harness = str(Path(outside.python).with_name("harness"))
    result = outside.run(
        *(harness, "acceptance", "suites/boot", "--image", "kite", "-k", "test_power_on_to_login")
    )
    assert result.status == 1, result.text
    assert "machine.os.login()" in result.text, "the scenario's own line"
    assert "LoginError" in result.text


def test_a_read_only_site_packages_serves_as_well(outside: Project, kite: Kite) -> None:
    kite(outside)
    outside.write("test_kite.py", TEST)
    packages = outside.run(
        outside.python, "-c", "import harness; print(harness.__path__[0])"
    ).text.strip()
    before = {path for path in Path(packages).rglob("*") if "__pycache__" not in path.parts}
    # Root may write anywhere: compare instead of forbidding.
    result = outside.pytest("-q", PYTHONDONTWRITEBYTECODE="1")
    assert result.status == 0, result.text
    after = {path for path in Path(packages).rglob("*") if "__pycache__" not in path.parts}
    assert after == before


# --- wrong input ------------------------------------------------------------------------------


def test_a_run_without_any_test_of_harness_makes_nothing(outside: Project) -> None:
    outside.write("test_plain.py", "import sys\n\ndef test_it():\n    assert True\n")
    result = outside.pytest()
    assert result.status == 0, result.text
    assert "harness:" not in result.text
    assert not (outside.folder / ".harness").exists()


def test_a_run_without_any_test_of_harness_imports_nothing_heavy(outside: Project) -> None:
    outside.write(
        "test_plain.py",
        "import sys\n\n\ndef test_it():\n"
        "    heavy = {'pydantic', 'paramiko', 'rich', 'qemu', 'docker', 'requests', 'pexpect'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    mine = {name for name in sys.modules if name.startswith('harness.')}\n"
        "    assert all(name.startswith('harness.pytest_plugin') for name in mine), mine\n",
    )
    result = outside.pytest()
    assert result.status == 0, result.text


def test_no_images_is_an_error_that_says_what_to_do(outside: Project) -> None:
    outside.write("test_kite.py", TEST)
    result = outside.pytest()
    assert result.status == 1
    assert "there is no image in" in result.text
    assert re.search(r"--image [a-z, ]*\bmicro\b[a-z, ]* or [a-z]+", result.text)


def test_an_unknown_image_is_a_usage_error_that_lists_the_choices(
    outside: Project, kite: Kite
) -> None:
    kite(outside)
    result = outside.pytest("--image", "kitte")
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert "did you mean kite?" in result.text
    assert not (outside.folder / ".harness").exists()


def test_a_checkout_is_not_tested_with_another_copy(outside: Project) -> None:
    outside.write("pyproject.toml", "[tool.pytest.ini_options]\n")
    outside.write("harness/pytest_plugin/__init__.py", "")
    outside.write("test_plain.py", "def test_it(): ...\n")
    pytest_program = str(Path(outside.python).with_name("pytest"))
    result = outside.run(pytest_program, "-q")
    assert result.status == pytest.ExitCode.USAGE_ERROR, result.text
    assert "two copies of Harness" in result.text


def test_naming_the_plugin_by_hand_does_no_harm(outside: Project) -> None:
    outside.write("test_plain.py", "def test_it(): ...\n")
    result = outside.pytest("-q", "-p", "harness.pytest_plugin")
    assert result.status == 0, result.text
