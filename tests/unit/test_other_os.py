"""The suites on an operating system that Harness does not know: a catalogue and a profile of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from fixtures.releases import Releases
from fixtures.session import Session
from harness.catalog import Catalog, Image
from harness.errors import UsageError

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
from collections.abc import Mapping
from typing import ClassVar

from harness.profiles import BootRecord, Profile, Slot, UpdateFile


class Kelp(Profile):
    name = "kelp"
    slot_names = ("USR-A", "USR-B")
    state_partition = "ROOT"
    update_files: ClassVar[Mapping[UpdateFile, str]] = {"root": "*.gz", "kernel": "*.gz"}

    def version(self): ...
    def slot(self): ...
    def slots(self): ...
    def boot_record(self): ...
    def trust(self, ca_pem): ...
    def upgrade(self, source, *, allow_downgrade=False, deadline=None): ...
    def slots_written(self): ...
    def fill_state(self, keep): ...
    def allow_from(self, version): ...
    def rollback(self): ...
    def choose_entry(self, entry, deadline=None): ...
    def fall_back(self, deadline=None): ...
    def damage(self, slot, part="root"): ...
"""


@pytest.fixture
def kelp(tmp_path: Path) -> Path:
    """A folder of images, as another project has it."""
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
        *("pytest", "--collect-only", "-q", "-p", "no:labgrid", "--all", "--cuts", "2"),
        *("--images", str(images), "--image", "kelp", f"--evidence={images.parent}/runs"),
        *("suites/upgrade", "suites/fallback", "suites/recovery", "suites/power"),
    )


def test_the_suites_take_it(kelp: Path) -> None:
    done = collect(kelp)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_rollback_by_the_boot_menu" in done.stdout


def test_a_word_that_is_missing_is_told_before_anything_starts(kelp: Path) -> None:
    (kelp / "kelp.py").write_text(PROFILE.replace("def fill_state", "def fill_it"))
    done = collect(kelp)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (
        "image kelp declares upgrade, ssh, and its profile ../kelp.py lacks the words fill_state"
        in done.stderr
    )


def test_the_command_line_takes_it(kelp: Path) -> None:
    done = run("harness.cli", "images", "--images", str(kelp), "list")
    assert done.returncode == 0, done.stderr
    assert "kelp/default:9.1.0-panic" in done.stdout


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


def test_releases_are_the_versions_in_the_order_of_the_catalogue() -> None:
    kelp = image("9.0.1", "9.1.0", "9.1.0-panic", "9.2.0", "10-verity")
    told = Releases(kelp.select(version="9.0.1"))
    assert (told.old, told.new, told.newest) == ("9.0.1", "9.1.0", "9.2.0")
    assert told.broken("panic") == "9.1.0-panic"
    later = Releases(kelp.select(version="9.1.0"))
    assert (later.old, later.new, later.newest) == ("9.1.0", "9.2.0", "10-verity")


def test_without_a_name_the_image_is_the_only_one_there_is(tmp_path: Path) -> None:
    def told(*names: str) -> Session:
        made = Session("", None, "tcg", False, 1.0, cast(Any, None), sys.stderr, (tmp_path,))
        made.catalog = Catalog(image("1").model_copy(update={"name": name}) for name in names)
        return made

    assert told("kelp").reference == "kelp"
    assert told("kelp", "skiff").reference == "skiff"
    with pytest.raises(UsageError, match="--image NAME: alga, kelp"):
        _ = told("kelp", "alga").reference


@pytest.mark.parametrize(
    ("version", "ask", "says"),
    [
        ("9.2.0", lambda told: told.new, "image kelp has no version after 9.2.0: build one"),
        ("9.1.0", lambda told: told.newest, "no version after 9.2.0"),
        ("9.0.1", lambda told: told.broken("stuck"), "no version 9.1.0-stuck: build one, name it"),
        ("9.1.0-panic", lambda told: told.new, "no version after 9.1.0-panic"),
    ],
)
def test_what_there_is_not_is_skipped_with_what_to_do(version: str, ask: object, says: str) -> None:
    told = Releases(image("9.0.1", "9.1.0", "9.1.0-panic", "9.2.0").select(version=version))
    assert callable(ask)
    with pytest.raises(pytest.skip.Exception, match=says):
        ask(told)
