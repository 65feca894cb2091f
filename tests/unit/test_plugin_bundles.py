"""Bundles in a pytest run: for which failures machines are saved, and the options."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.project import Project
from harness.evidence.bundle import Test
from harness.pytest_plugin import bundles

TEST = Test("test_it.py::test_it", "", "product", "", "a", "call", "test_it.py", "", (), {}, "")


def test_the_first_three_signatures_of_a_run_have_their_machines(tmp_path: Path) -> None:
    tests = [replace(TEST, id=f"test_it.py::test_{n}", signature=s) for n, s in enumerate("aabcda")]
    whys = [bundles._claim(tmp_path, test) for test in tests]
    assert [not why for why in whys] == [True, False, True, True, False, False]
    assert "test_it.py::test_0 failed in the same way before" in whys[1]
    assert "the bundles of 3 other failures" in whys[4]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--bundle-limit=large", "--bundle-limit: 'large' is not a size"),
        ("--bundle-budget=all", "--bundle-budget: 'all' is not a size"),
        ("--bundle=all", "invalid choice: 'all'"),
    ],
)
def test_a_wrong_option_is_a_usage_error(project: Project, option: str, why: str) -> None:
    project.write("test_it.py", "def test_it(): pass\n")
    result = project.pytest("-q", option)
    assert result.status == 4
    assert why in result.text


def test_the_terminal_says_that_old_bundles_have_gone(project: Project) -> None:
    old = project.folder / ".harness/runs/20260101-000000-1/boot-1/bundle.tar.zst"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(5000))
    (old.parents[1] / ".used").touch()
    project.write(
        "test_it.py", "def test_it(lab): lab.folder.joinpath('log').touch(); assert False"
    )
    arguments = ("-q", "--acceptance", "--image=micro", "test_it.py")
    kept = project.pytest(*arguments)
    assert "removed" not in kept.text
    assert old.exists()
    result = project.pytest(*arguments, "--bundle-budget=2KiB", "-k", "test_it")
    assert "of earlier runs removed, the oldest first" in result.text
    assert "all may take 2.0 KiB (--bundle-budget)" in result.text
    assert not old.exists()
    assert len(list((project.folder / ".harness/runs/latest").glob("*/bundle.tar.zst"))) == 1


def test_a_failure_without_a_lab_has_no_bundle(project: Project) -> None:
    project.write("test_it.py", "def test_it(): assert False\n")
    result = project.pytest("-q", "--acceptance", "--image=micro", "test_it.py")
    assert result.status in (1, 10), result.text
    assert "= bundles =" not in result.text


def test_a_short_secret_is_refused(project: Project) -> None:
    project.write("test_it.py", "def test_it(declare_secret): declare_secret('pin', '1234')\n")
    result = project.pytest("-q", "test_it.py")
    assert result.status == 1
    assert "a secret has at least 6 characters" in result.text


@pytest.mark.parametrize("command", ["repro", "resurrect"])
def test_what_is_no_bundle_is_wrong_usage(project: Project, command: str) -> None:
    path = project.write("file", "hello\n" * 100)
    words = (sys.executable, "-m", "harness.cli", command)
    for each, why in ((path, "another kind of file"), (Path("absent"), "cannot be read")):
        result = project.run(*words, str(each))
        assert result.status == 2, result.text
        assert why in result.text
        assert "Traceback" not in result.text
