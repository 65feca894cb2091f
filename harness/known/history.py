"""The history of known failures: in which runs each occurred, and in which it could have.

A run is what its ``results.json`` says, or its line in a file of ``harness history``. An entry could
have occurred in a run whose tests that it names ran on an image that it names, and passed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import UsageError, Verdict
from harness.evidence import history as lines
from harness.evidence.results import FILE
from harness.known.model import Entry, Subject

MOST_BYTES: Final = 256 * 1024 * 1024
"""Bytes of a ``results.json``, at most; a larger one is none of ours."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an entry stands.

    Attributes:
        entry: The entry.
        occurred: In how many runs it occurred.
        last_seen: When the last of them began, in ISO 8601; empty if there is none.
        without: How many runs there were since then in which it could have occurred and did not.
    """

    entry: Entry
    occurred: int
    last_seen: str
    without: int


def runs(places: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the results of runs, the oldest first.

    Args:
        places: Folders of runs, of one run, or of folders such as those of shards' artifacts; or files:
            a ``results.json``, or a history, whose name ends in ``.jsonl``. What is no
            ``results.json`` of ours in folders is left out. A run that is in several places counts
            once.

    Raises:
        UsageError: A place does not exist, or a history is damaged.
    """
    files: dict[Path, None] = {}
    read: list[dict[str, Any]] = []
    for place in places:
        if not place.exists():
            raise UsageError(f"{place}: there is no such folder of runs")
        if place.suffix == lines.SUFFIX and place.is_file():
            read += [lines.expand(line) for line in lines.parse(place)]
            continue
        paths = [place] if place.is_file() else sorted(place.rglob(FILE))
        # "latest" is a link to one of the others.
        files.update(dict.fromkeys(path.resolve() for path in paths))
    # After the lines of a history, which know less of the same run.
    read += [content for path in files if (content := _read(path)) is not None]
    once: dict[str, dict[str, Any]] = {}
    for run in read:
        key = lines.key_of(run)
        if key not in once or len(run["tests"]) >= len(once[key]["tests"]):
            once[key] = run
    return sorted(once.values(), key=lambda run: str(run["began"]))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("tests"), list):
        return None
    content.setdefault("began", "")
    content["tests"] = [test for test in content["tests"] if isinstance(test, dict)]
    return content


def standings(entries: Sequence[Entry], history: Sequence[dict[str, Any]]) -> list[Standing]:
    """Return how entries stand after runs, which begin with the oldest."""
    return [_standing(entry, history) for entry in entries]


def _standing(entry: Entry, history: Sequence[dict[str, Any]]) -> Standing:
    occurred, without, last_seen = 0, 0, ""
    for run in history:
        if any((test.get("known") or {}).get("key") == entry.key for test in run["tests"]):
            occurred, without, last_seen = occurred + 1, 0, str(run["began"])
        elif any(_passed(test, entry, run) for test in run["tests"]):
            without += 1
    return Standing(entry, occurred, last_seen, without)


def _passed(test: dict[str, Any], entry: Entry, run: dict[str, Any]) -> bool:
    if test.get("verdict") != Verdict.PASSED.value:
        return False
    image = run.get("image") or {}
    arch = str(test.get("arch", ""))
    # A test that has no architecture uses no image.
    name, variant, version = (
        str(image.get(key, "")) if arch else "" for key in ("name", "variant", "version")
    )
    return entry.may_match(str(test.get("id", "")), Subject(name, variant, version, arch))
