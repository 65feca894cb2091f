"""The content of the wheel."""

from __future__ import annotations

import importlib.util
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = "harness/_bundled/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_one_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"harness"}


def test_the_wheel_has_no_leftovers(wheel: zipfile.ZipFile) -> None:
    bad = ("__pycache__", ".pyc", "mkosi.tools", "mkosi.cache", "mkosi.output")
    assert [name for name in wheel.namelist() if any(part in name for part in bad)] == []


@pytest.mark.parametrize("folder", ["suites", "images"])
def test_the_wheel_carries_every_file(wheel: zipfile.ZipFile, folder: str) -> None:
    files = {
        f"{BUNDLED}{path.relative_to(ROOT)}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if name.startswith(f"{BUNDLED}{folder}/")} == files


def test_the_wheel_carries_the_report_and_its_player(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "harness/evidence/report"
    files = {
        str(path.relative_to(ROOT))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"{folder.relative_to(ROOT)}/asciinema-player/LICENSE" in files
    names = wheel.namelist()
    assert {name for name in names if name.startswith("harness/evidence/report/")} == files


def test_programs_stay_executable(wheel: zipfile.ZipFile) -> None:
    for info in wheel.infolist():
        if info.filename.startswith(BUNDLED):
            source = ROOT / info.filename.removeprefix(BUNDLED)
            runs = bool((info.external_attr >> 16) & stat.S_IXUSR)
            assert runs == bool(source.stat().st_mode & stat.S_IXUSR), info.filename
    assert (wheel.getinfo(f"{BUNDLED}images/micro/build").external_attr >> 16) & stat.S_IXUSR


def test_the_plugin_is_an_entry_point(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert re.search(
        r"^\[pytest11\]\n\S+ = harness\.pytest_plugin$", wheel.read(name).decode(), re.MULTILINE
    )


def test_a_link_is_refused(tmp_path: Path) -> None:
    """Installers write a link in a wheel as a file, so an image would be built from other files."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / ".ci" / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to("/dev/null")
    with pytest.raises(ValueError, match="images/link is a symbolic link"):
        module.bundled(tmp_path)
