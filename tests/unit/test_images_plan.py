"""``harness images build --plan``: what the jobs of a plan may start is built, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main
from harness.gate.plan import write
from tests import gate_plans
from tests.gate_plans import a_job, sealed

IMAGE = """
name: {name}
summary: An OS
profile: micro
build: {{script: build}}
versions: ["1", "2", "2-panic"]
arches:
  x86_64: {{firmware: bios, artifacts: {{live: {{file: live}}}}}}
  aarch64: {{firmware: bios, artifacts: {{live: {{file: live}}}}}}
"""
BUILD = '#!/bin/sh\nwhile [ "$1" != --out ]; do shift; done\necho "$0" >"$2/live"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of two images, and an empty cache."""
    for name in ("kelp", "kite"):
        image = tmp_path / "images" / name
        image.mkdir(parents=True)
        (image / "image.yaml").write_text(IMAGE.format(name=name))
        (image / "build").write_text(BUILD)
        (image / "build").chmod(0o755)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def a_plan(path: Path, *images: tuple[str, str]) -> str:
    jobs = [
        a_job(f"job-{number}", f"t.py::t{number}", image=image, arch=arch)
        for number, (image, arch) in enumerate(images)
    ]
    plan = gate_plans.a_plan(*jobs, commit="", empty="" if jobs else "only docs/ changed")
    write(sealed(plan), path)
    return str(path)


def build(folder: Path, *arguments: str) -> int:
    return main(["images", "--images", str(folder / "images"), "build", *arguments])


def built(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (folder / "cache" / "entries").iterdir())


def test_all_versions_of_an_image_are_built_on_its_architecture(folder: Path) -> None:
    plan = a_plan(folder / "plan.json", ("kelp", "x86_64"), ("kelp", "x86_64"))
    assert build(folder, "--plan", plan) == 0
    versions = ("1", "2-panic", "2")
    assert built(folder) == [f"kelp-default-{version}-x86_64" for version in versions]


def test_what_the_tests_of_a_job_start_besides_is_built_too(folder: Path) -> None:
    job = a_job("job-1", "t.py::t1", image="kelp", arch="x86_64", also=("aarch64",))
    path = folder / "plan.json"
    write(sealed(gate_plans.a_plan(job, commit="")), path)
    assert build(folder, "--plan", str(path)) == 0
    arches = {name.rpartition("-")[2] for name in built(folder)}
    assert arches == {"x86_64", "aarch64"}


def test_an_image_that_the_catalogue_does_not_have_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first build: a plan of another commit."""
    plan = a_plan(folder / "plan.json", ("kelp", "x86_64"), ("kiwi", "x86_64"))
    assert build(folder, "--plan", plan) == 2
    assert "kiwi" in capsys.readouterr().err
    assert not (folder / "cache" / "entries").exists()


def test_a_plan_without_jobs_builds_nothing(folder: Path) -> None:
    assert build(folder, "--plan", a_plan(folder / "plan.json")) == 0


def test_no_image_and_no_plan_is_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(folder) == 2
    assert "--plan FILE" in capsys.readouterr().err
