"""The check of commit subjects (``.ci/subjects.py``)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.programs import need

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "subjects.py"
LONG = "x" * 73


@pytest.fixture
def subjects() -> ModuleType:
    spec = importlib.util.spec_from_file_location("subjects", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_limit_counts_characters_not_bytes(subjects: ModuleType) -> None:
    assert subjects.too_long(["ü" * 72]) == []
    assert "has 73 characters" in subjects.too_long([LONG])[0]


def test_autosquash_subjects_may_be_longer(subjects: ModuleType) -> None:
    assert subjects.too_long([f"fixup! {'x' * 72}"]) == []


@pytest.mark.parametrize(
    ("message", "subject"),
    [
        ("One\n\nBody\n", "One"),
        ("\n# a comment\nOne\ntwo\n\nBody", "One two"),
        ("# only comments\n", ""),
    ],
)
def test_the_subject_ends_at_the_first_empty_line(
    subjects: ModuleType, message: str, subject: str
) -> None:
    assert subjects.subject_of(message) == subject


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_hook_refuses_a_long_subject(tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_text(f"{LONG}\n")
    process = run("--message", str(message), folder=tmp_path)
    assert process.returncode == 1
    assert "72 are allowed" in process.stderr
    message.write_text("Short\n")
    assert run("--message", str(message), folder=tmp_path).returncode == 0


def test_outside_a_repository_there_is_nothing_to_check(tmp_path: Path) -> None:
    assert run(folder=tmp_path).returncode == 0


class Repository:
    """A repository whose first commit is the last one before the rule."""

    def __init__(self, folder: Path, subjects: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit(f"old {LONG}")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(subjects, "FIRST", self.git("rev-parse", "HEAD").strip())

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def commit(self, subject: str) -> None:
        self.git("commit", "--quiet", "--allow-empty", "-m", subject)


@pytest.fixture
def repository(tmp_path: Path, subjects: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Repository:
    need("git")
    return Repository(tmp_path, subjects, monkeypatch)


def test_history_before_the_rule_is_not_checked(
    repository: Repository, subjects: ModuleType
) -> None:
    assert subjects.new_subjects() == []
    repository.commit("new")
    assert subjects.new_subjects() == ["new"]
    assert subjects.main([]) == 0


def test_a_branch_is_checked_from_main_on(repository: Repository, subjects: ModuleType) -> None:
    repository.commit("on main")
    repository.git("checkout", "--quiet", "-b", "topic")
    repository.commit(LONG)
    assert subjects.new_subjects() == [LONG]
    assert subjects.main([]) == 1


def test_pushed_commits_are_not_checked(repository: Repository, subjects: ModuleType) -> None:
    repository.commit("pushed")
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    repository.commit("new")
    assert subjects.new_subjects() == ["new"]


def test_a_shallow_clone_passes(
    repository: Repository, subjects: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit(LONG)
    monkeypatch.setattr(subjects, "FIRST", "0" * 40)
    assert subjects.main([]) == 0
