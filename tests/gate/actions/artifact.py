"""Artifacts as GitHub keeps them, in a folder: what upload-artifact and download-artifact do.

Hidden files are left out by default, a name is taken once (409 Conflict), and what does not exist is
an error for a name and nothing for a pattern (README of actions/upload-artifact and
actions/download-artifact).
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
from pathlib import Path

STORE = Path(os.environ["ARTIFACTS"])


def upload(inputs: dict[str, str]) -> None:
    name, source = inputs["name"], Path(inputs["path"])
    if fnmatch.fnmatch(name, os.environ.get("LOST", "") or "-"):
        sys.exit("the runner has lost communication with the server")
    hidden = inputs["hidden"] != "true" and any(part.startswith(".") for part in source.parts)
    files = [] if hidden else [path for path in source.rglob("*") if path.is_file()]
    if source.is_file() and not hidden:
        files = [source]
    if not files:
        if inputs["missing"] == "error":
            sys.exit(f"No files were found with the provided path: {source}")
        print(f"no files: {source}")
        return
    if (STORE / name).exists():
        sys.exit(f"(409) Conflict: an artifact with this name already exists: {name}")
    for path in files:
        target = STORE / name / (path.name if path == source else path.relative_to(source))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    with Path(os.environ["GITHUB_OUTPUT"]).open("a") as stream:
        stream.write(f"artifact-id={name}\n")


def download(inputs: dict[str, str]) -> None:
    target = Path(inputs["path"])
    one = inputs["name"] or inputs["ids"]
    names = sorted(path.name for path in STORE.iterdir()) if STORE.is_dir() else []
    if one and one not in names:
        sys.exit(f"Artifact not found for name: {one}")
    for name in [one] if one else fnmatch.filter(names, inputs["pattern"] or "*"):
        to = target if one or inputs["merge"] == "true" else target / name
        shutil.copytree(STORE / name, to, dirs_exist_ok=True)


def save(inputs: dict[str, str]) -> None:
    place = STORE.with_name("caches") / inputs["key"]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(inputs["path"], place)


def restore(inputs: dict[str, str]) -> None:
    """Take the newest entry whose key begins so, if there is one."""
    folder = STORE.with_name("caches")
    entries = sorted(folder.glob(f"{inputs['restore']}*"), key=lambda path: path.stat().st_mtime_ns)
    if entries:
        Path(inputs["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entries[-1], inputs["path"])


if __name__ == "__main__":
    verbs = {"upload": upload, "download": download, "save": save, "restore": restore}
    verbs[sys.argv[1]](json.loads(os.environ["INPUTS"]))
