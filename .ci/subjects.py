"""Check that the subjects of commits have at most 72 characters.

::

    python .ci/subjects.py                  # the new commits of this branch
    python .ci/subjects.py --message FILE   # one message, as a commit-msg hook

A commit is new if neither ``origin/main`` nor :data:`FIRST` contains it. Without a remote the local
``main`` counts, unless it is checked out. Without git, outside a repository, or in a shallow clone that
lacks :data:`FIRST`, there is nothing to compare with and the check passes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LIMIT = 72
"""Characters of a subject: what ``git log`` shows in a terminal of 80 columns."""

FIRST = "72c0e84f7b28e81892db694a238faddaf1727f2b"
"""The last commit before this rule. Older subjects are longer."""

SQUASHED = ("fixup! ", "squash! ", "amend! ")
"""Subjects that ``git rebase --autosquash`` removes; they quote another commit's."""


def too_long(subjects: Iterable[str]) -> list[str]:
    """Return a complaint for each subject that is too long."""
    return [
        f"a commit's subject has {len(subject)} characters, {LIMIT} are allowed: {subject}"
        for subject in subjects
        if len(subject) > LIMIT and not subject.startswith(SQUASHED)
    ]


def subject_of(message: str) -> str:
    """Return the subject of a message as git reads it: the lines before the first empty one.

    Lines that begin with ``#`` are git's own comments (git-commit(1), ``--cleanup``).
    """
    lines = [line.strip() for line in message.splitlines() if not line.startswith("#")]
    text = "\n".join(lines).strip()
    return " ".join(text.split("\n\n", maxsplit=1)[0].split("\n"))


def git(*arguments: str) -> str | None:
    """Return the output of a git command; None where git is missing or the command fails."""
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return process.stdout if process.returncode == 0 else None


def commit(name: str) -> str | None:
    """Return the hash of a commit; None where it does not exist."""
    return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def new_subjects() -> list[str]:
    """Return the subjects of this branch's new commits, merges left out."""
    if commit(FIRST) is None:
        return []
    known = [FIRST]
    if commit("origin/main"):
        known.append("origin/main")
    elif commit("main") not in (None, commit("HEAD")):
        known.append("main")
    subjects = git("log", "--no-merges", "--format=%s", "HEAD", *(f"^{name}" for name in known))
    return (subjects or "").splitlines()


def main(arguments: list[str]) -> int:
    """Print complaints; return the exit status."""
    if arguments[:1] == ["--message"]:
        subjects = [subject_of(Path(arguments[1]).read_text(encoding="utf-8"))]
    else:
        subjects = new_subjects()
    complaints = too_long(subjects)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if complaints:
        print(
            "  try: git commit --amend, or git rebase -i; reasons go in the body", file=sys.stderr
        )
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
