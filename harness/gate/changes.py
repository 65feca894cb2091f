"""What has changed in a checkout: the files that differ from the merge base with a ref, by git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.errors import HostError, UsageError


def changed_since(root: Path, ref: str) -> tuple[str, ...]:
    """Return the paths that differ from where this checkout left a ref, relative to a folder.

    These are the files that commits since the merge base of the ref and ``HEAD`` touched, those with
    changes in no commit, and new ones that git does not ignore. A renamed file is two: the old path and
    the new one. A path outside the folder begins with ``../``.

    Args:
        root: A folder of the checkout.
        ref: A branch, a tag or a commit.

    Raises:
        UsageError: The folder is in no checkout, or the ref does not exist, or has nothing in common
            with ``HEAD``.
        HostError: git is not installed, or fails.
    """
    top = Path(_git(root, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    if ref.startswith("-") or _try(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"):
        raise UsageError(
            f"--changed-since {ref}: git knows no such commit",
            hint=f"git fetch origin, then git rev-parse {ref}; a CI checkout is shallow: fetch-depth: 0",
        )
    if _try(root, "merge-base", ref, "HEAD"):
        raise UsageError(
            f"--changed-since {ref}: it has no commit in common with HEAD",
            hint="fetch the history in between; a CI checkout is shallow: fetch-depth: 0",
        )
    base = _git(root, "merge-base", ref, "HEAD").decode().strip()
    # The working tree against the base: commits and changes in none, in one.
    differing = _git(top, "diff", "--name-only", "--no-renames", "--no-ext-diff", "-z", base, "--")
    new = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
    paths = {os.fsdecode(name) for name in (differing + new).split(b"\0") if name}
    start = root.resolve()
    return tuple(sorted(os.path.relpath(top.resolve() / path, start) for path in paths))


def is_dirty(root: Path) -> bool:
    """Return whether a checkout has changes in no commit; false where git does not say."""
    try:
        return bool(_git(root, "status", "--porcelain", "-z"))
    except (UsageError, HostError):
        return False


def _try(root: Path, *arguments: str) -> int:
    return _run(root, *arguments).returncode


def _git(root: Path, *arguments: str) -> bytes:
    process = _run(root, *arguments)
    if process.returncode:
        message = process.stderr.decode(errors="replace").strip()
        if "not a git repository" in message:
            raise UsageError(
                f"--changed-since: {root} is in no git checkout",
                hint="leave the option out: the plan then has everything",
            )
        raise HostError(f"git {arguments[0]} failed in {root}", evidence=message)
    return process.stdout


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    # A user's configuration may quote paths, or show relative ones.
    command = ["git", "-C", str(root), "-c", "core.quotePath=false", "-c", "diff.relative=false"]
    try:
        return subprocess.run(
            [*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise HostError(f"git cannot be run: {error}", hint="install git") from error
