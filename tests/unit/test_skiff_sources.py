"""skiff's choice of its architecture's update: the image's shell functions run on this host."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness import arch as arches
from tests.programs import needs

SOURCES = (
    Path(__file__).resolve().parents[2] / "images/skiff/mkosi/mkosi.extra/usr/lib/skiff/sources.sh"
)
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

pytestmark = [needs("bash"), needs("jq")]


def source(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of bash after the image's functions have been defined."""
    return subprocess.run(
        ["bash", "-c", f'. "$0"; {command}', SOURCES, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def entry(digest: str, arch: str, os: str = "linux", **more: Any) -> dict[str, Any]:
    platform = {"os": os, "architecture": arch}
    return {"mediaType": MANIFEST, "digest": digest, "platform": platform} | more


@pytest.mark.parametrize(
    ("manifests", "digest", "platforms"),
    [
        ([entry("a", "arm64"), entry("b", "amd64")], "b", "linux/amd64, linux/arm64"),
        # The first of several counts.
        ([entry("a", "amd64"), entry("b", "amd64", variant="v3")], "a", "linux/amd64"),
        ([entry("a", "arm64")], "", "linux/arm64"),
        ([entry("a", "amd64", os="windows")], "", "windows/amd64"),
        # A media type that is unknown has to be ignored; a platform is optional.
        (
            [{"mediaType": MANIFEST, "digest": "a"}, entry("b", "amd64", mediaType="x/y")],
            "",
            "linux/amd64",
        ),
        ([], "", ""),
    ],
    ids=["two", "twice", "another", "another system", "another type", "none"],
)
def test_the_first_manifest_for_the_platform_is_taken(
    tmp_path: Path, manifests: list[dict[str, Any]], digest: str, platforms: str
) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    chosen = source('manifest_for amd64 "$1"', index)
    assert (chosen.stdout.strip(), chosen.returncode == 0) == (digest, bool(digest)), chosen.stderr
    assert source('platforms "$1"', index).stdout.strip() == platforms


@pytest.mark.parametrize(
    ("content", "answer"),
    [('{"manifests": []}', True), ('{"layers": []}', False), ("<html>", False)],
)
def test_an_index_is_told_from_a_manifest(tmp_path: Path, content: str, answer: bool) -> None:
    (tmp_path / "manifest.json").write_text(content)
    process = source('is_index "$1"', tmp_path / "manifest.json")
    assert (process.returncode == 0) == answer


@pytest.mark.parametrize("arch", arches.ARCHES)
def test_the_guest_and_harness_name_an_architecture_alike(arch: str) -> None:
    row = arches.of(arch)
    process = source(f"uname() {{ echo {row.name}; }}; arch_names")
    assert process.stdout.split() == [row.systemd, row.oci]
