"""The suites on another project's operating system, with its own catalogue and profile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Lab
from harness.catalog import Catalog, Image
from harness.errors import UsageError
from harness.pytest_plugin.fixtures import Releases

ROOT = Path(__file__).resolve().parents[2]

IMAGE = """\
name: kelp
summary: An OS of another project
profile: ../kelp.py
build: {script: build}
versions: ["9.0.1", 9.1.0, 9.2.0, 9.1.0-panic]
arches:
  x86_64:
    firmware: uefi
    artifacts: {live: {file: kelp.raw}, update: {file: update.tar}}
login: {user: core}
capabilities: [ssh, systemd, upgrade, rollback, x-omaha]
"""

PROFILE = """
from harness import Profile


class Kelp(Profile):
    name = "kelp"
    slot_names = ("USR-A", "USR-B")
    state_partition = "ROOT"
    update_files = {"root": "*.gz", "kernel": "*.gz"}

    def version(self): ...
    def slot(self): ...
    def slots(self): ...
    def boot_record(self): ...
    def trust(self, ca_pem): ...
    def upgrade(self, source, *, allow_downgrade=False, deadline=None): ...
    def slots_written(self): ...
    def fill_state(self, keep): ...
    def free_state(self): ...
    def allow_from(self, version): ...
    def rollback(self): ...
    def choose_entry(self, entry, deadline=None): ...
    def fall_back(self, deadline=None): ...
    def damage(self, slot, part="root"): ...
"""


@pytest.fixture
def kelp(tmp_path: Path) -> Path:
    """Another project's folder of images."""
    images = tmp_path / "images"
    (images / "kelp").mkdir(parents=True)
    (images / "kelp" / "image.yaml").write_text(IMAGE)
    (images / "kelp" / "build").write_text("#!/bin/sh\n")
    (images / "kelp" / "build").chmod(0o755)
    (images / "kelp.py").write_text(PROFILE)
    return images


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def collect(images: Path) -> subprocess.CompletedProcess[str]:
    return run(
        *("pytest", "--collect-only", "-q", "-p", "no:labgrid", "--tier", "nightly", "--cuts", "2"),
        *("--images", str(images), "--image", "kelp", f"--evidence={images.parent}/runs"),
        *("suites/upgrade", "suites/fallback", "suites/recovery", "suites/power"),
    )


def test_the_suites_collect_on_its_image(kelp: Path) -> None:
    process = collect(kelp)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "test_rollback_by_the_boot_menu" in process.stdout


def test_a_missing_word_is_reported_before_anything_starts(kelp: Path) -> None:
    (kelp / "kelp.py").write_text(PROFILE.replace("def fill_state", "def fill_it"))
    process = collect(kelp)
    assert process.returncode == pytest.ExitCode.USAGE_ERROR
    assert (
        "image kelp declares upgrade, ssh, but its profile ../kelp.py lacks fill_state"
        in process.stderr
    )


def test_the_command_line_lists_its_image(kelp: Path) -> None:
    process = run("harness.cli", "images", "--images", str(kelp), "list")
    assert process.returncode == 0, process.stderr
    assert "kelp/default:9.1.0-panic " in process.stdout
    # The longest name of all is beside its architecture, too.
    assert "skiff-testing/cluster:2-unhealthy  x86_64" in process.stdout


def image(*versions: str) -> Image:
    arches = {"x86_64": {"firmware": "uefi", "artifacts": {"live": {"file": "live.raw"}}}}
    return Image.model_validate(
        {
            "name": "kelp",
            "summary": "An OS",
            "profile": "kelp",
            "build": {"script": "build"},
            "versions": versions,
            "arches": arches,
        }
    )


def test_releases_follow_the_order_of_the_catalogue() -> None:
    kelp = image("9.0.1", "9.1.0", "9.1.0-panic", "9.2.0", "10-verity")
    releases = Releases(kelp.select(version="9.0.1"))
    assert (releases.old, releases.new, releases.newest) == ("9.0.1", "9.1.0", "9.2.0")
    assert releases.broken("panic") == "9.1.0-panic"
    later = Releases(kelp.select(version="9.1.0"))
    assert (later.old, later.new, later.newest) == ("9.1.0", "9.2.0", "10-verity")


def test_the_default_image_is_the_only_one_of_the_project(tmp_path: Path) -> None:
    def lab(*names: str, default: str = "") -> Lab:
        result = Lab(images=[tmp_path], default_image=default, evidence=tmp_path)
        images = [image("1").model_copy(update={"name": name}) for name in names]
        result._parts.own_catalog = Catalog(images)
        return result

    assert lab("kelp").reference == "kelp"
    assert lab("kelp", "skiff", default="skiff").reference == "skiff"
    with pytest.raises(UsageError, match="--image NAME: alga, kelp"):
        _ = lab("kelp", "alga").reference
    with pytest.raises(UsageError, match=r"--image (\w+ or )*micro or (\w+ or )*skiff"):
        _ = lab().reference


@pytest.mark.parametrize(
    ("version", "ask", "message"),
    [
        (
            "9.2.0",
            lambda releases: releases.new,
            "image kelp has no version after 9.2.0: build one",
        ),
        ("9.1.0", lambda releases: releases.newest, "no version after 9.2.0"),
        (
            "9.0.1",
            lambda releases: releases.broken("stuck"),
            "no version 9.1.0-stuck: build one, name it",
        ),
        ("9.1.0-panic", lambda releases: releases.new, "no version after 9.1.0-panic"),
    ],
)
def test_a_missing_version_skips_the_test_with_a_hint(
    version: str, ask: Callable[[Releases], str], message: str
) -> None:
    versions = ("9.0.1", "9.1.0", "9.1.0-panic", "9.2.0")
    releases = Releases(image(*versions).select(version=version))
    with pytest.raises(pytest.skip.Exception, match=message):
        ask(releases)
