"""A run as one line of a history: what later runs and people compare, and nothing else.

A line is made from ``results.json`` (:mod:`harness.evidence.results`) and is turned back into what a
reader of results expects, so that one reader takes both::

    {"format": 1, "key": "3f0c5d1e9a7b2c44", "began": "2026-11-29T01:02:03Z", "seconds": 61.2,
    "status": 1,
     "image": {"name": "skiff", "variant": "core", "version": "1"},
     "arches": {"x86_64": {"inputs": "5e884898da28", "qemu": "10.0.2", "accel": "tcg",
                           "packages": "0a1b2c3d4e5f"}},
     "versions": {"harness": "0.1.0", "python": "3.11.7"},
     "plan": {"id": "9c1f...", "job": "skiff-x86_64-1", "attempt": 1, "commit": "158d..."},
     "url": "https://ci.example/runs/4711",
     "tests": {"x86_64": {"suites/boot/test_live.py::test_login": 43.1,
                          "suites/boot/test_live.py::test_unit": {
                              "verdict": "product", "seconds": 3.2, "signature": "5478720c38114f98",
                              "reason": "unit foo.service failed"}}},
     "skipped": {"x86_64": 4}}

``tests`` has a test's seconds, if it passed at its first try, or else an object: ``verdict`` (or the
outcome, where there is no verdict), ``seconds``, and, where they are not empty, ``signature``,
``reason`` (its first 160 characters), ``known`` (the key of the entry of ``known.yaml``) and ``was``,
the verdict of the failed try of a flaky test. The seconds are those of all phases of the last try.
The key of the architecture is empty for a test that uses no image. ``packages`` is a digest of the
list of packages.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import UsageError, Verdict
from harness.evidence.results import plain_id

FORMAT: Final = 1
SUFFIX: Final = ".jsonl"
"""The suffix of a file of lines."""

REASON: Final = 160
"""Characters that are kept of a failure's first line."""

Line = dict[str, Any]
Results = dict[str, Any]

SHORT: Final = 12
"""Digits that are kept of a digest."""

_DIGEST: Final = re.compile(r"[0-9a-f]{40,}")
_CLASS: Final = "harness.errors."
"""What pytest puts before the name of an error of ours."""

_SKIPPED: Final = "skipped"

_WORST: Final = (
    *(Verdict.PRODUCT, Verdict.TEST, Verdict.TIMEOUT, Verdict.INFRA),
    *("interrupted", Verdict.FLAKY, Verdict.KNOWN, Verdict.PASSED),
)
"""What a test may have come to, the worst first."""


def key_of(run: Mapping[str, Any]) -> str:
    """Return what identifies a run, wherever its results lie: 16 hexadecimal digits.

    For a job of a plan it does not depend on how far the run had come: results that were written early,
    and those of the same run when it had ended, have one key.

    Args:
        run: The content of ``results.json``, or what :func:`expand` returns.
    """
    if isinstance(run.get("key"), str):
        return str(run["key"])
    plan = _mapping(run.get("plan"))
    facts: Any
    if not run.get("began"):
        # Nothing tells it from others but all of it.
        facts = run
    elif plan.get("job"):
        facts = (run["began"], *(plan.get(name) for name in ("id", "job", "attempt")))
    else:
        image, arches = _mapping(run.get("image")), sorted(_mapping(run.get("arches")))
        names = ("began", "command", "host", "seconds")
        facts = (image.get("reference"), arches, *(run.get(name) for name in names))
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def compact(run: Mapping[str, Any], *, url: str = "") -> Line:
    """Return the line of a run.

    Args:
        run: The content of ``results.json``.
        url: Where its report or its log can be read; empty if that is not known.
    """
    tests: dict[str, dict[str, Any]] = {}
    skipped: dict[str, int] = {}
    for test in run["tests"]:
        arch = str(test.get("arch") or "")
        label = str(test.get("verdict") or test.get("outcome") or "interrupted")
        if label == _SKIPPED:
            skipped[arch] = skipped.get(arch, 0) + 1
            continue
        cell = _cell(test, label)
        row = tests.setdefault(arch, {})
        name = plain_id(str(test.get("id", "")), arch)
        # Where each worker runs all tests, the worst of them counts.
        if name not in row or _rank(cell) < _rank(row[name]):
            row[name] = cell
    image = _mapping(run.get("image"))
    line: Line = {
        "format": FORMAT,
        "key": key_of(run),
        "began": str(run.get("began", "")),
        "seconds": _number(run.get("seconds")),
        "status": run.get("status"),
        "image": {name: str(image.get(name, "")) for name in ("name", "variant", "version")},
        "arches": {arch: _facts(facts) for arch, facts in _mapping(run.get("arches")).items()},
        "versions": {name: str(text) for name, text in _mapping(run.get("versions")).items()},
    }
    if plan := _mapping(run.get("plan")):
        line["plan"] = plan
    if url:
        line["url"] = url
    return line | {"tests": tests, "skipped": skipped}


def expand(line: Mapping[str, Any]) -> Results:
    """Return a line as a reader of ``results.json`` expects it; skipped tests are not in it."""
    tests = []
    for arch, row in line["tests"].items():
        for name, cell in row.items():
            fields: dict[str, Any] = {"verdict": Verdict.PASSED.value, "seconds": cell}
            if isinstance(cell, dict):
                fields = cell
            verdict = str(fields.get("verdict", ""))
            known = fields.get("known")
            tests.append(
                {
                    "id": name,
                    "arch": arch,
                    "outcome": verdict if verdict == "interrupted" else "",
                    "verdict": "" if verdict == "interrupted" else verdict,
                    "reason": str(fields.get("reason", "")),
                    "seconds": {"call": _number(fields.get("seconds"))},
                    "signature": str(fields.get("signature", "")),
                    "known": {"key": known} if known else None,
                    "was": str(fields.get("was", "")),
                }
            )
    kept = {name: value for name, value in line.items() if name not in ("format", "tests")}
    return kept | {"tests": tests}


def parse(path: Path) -> list[Line]:
    """Return the lines of a file.

    Raises:
        UsageError: The file cannot be read, or a line is none of ours; names ``file:line``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return [_line(each, f"{path}:{number}") for number, each in _numbered(text)]


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): a reason may have other ends of lines, which JSON leaves as they are.
    for number, each in enumerate(text.split("\n"), 1):
        if each.strip():
            yield number, each


def _line(text: str, where: str) -> Line:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = (
            "merge by `harness history add`: it takes both files" if text[:7] in _CONFLICT else ""
        )
        raise UsageError(f"{where}: not JSON: {error}", hint=hint) from error
    if not isinstance(content, dict) or not isinstance(content.get("tests"), dict):
        raise UsageError(f"{where}: not a run of a history")
    if content.get("format") != FORMAT:
        raise UsageError(
            f"{where}: format {content.get('format')!r}; this version of Harness reads {FORMAT}",
            hint="use the version of Harness that wrote it",
        )
    shaped = all(isinstance(content.get(name), kind) for name, kind in _SHAPE.items())
    rows = [*content["tests"].values(), *_mapping(content.get("arches")).values()]
    if not shaped or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{where}: not a run of a history: a part is missing or has another type")
    return content


_SHAPE: Final = {
    "key": str,
    "began": str,
    "image": dict,
    "arches": dict,
    "versions": dict,
    "tests": dict,
    "skipped": dict,
}


_CONFLICT: Final = ("<<<<<<<", "=======", ">>>>>>>")
"""What git writes into a file that two sides have changed."""


def _cell(test: Mapping[str, Any], label: str) -> Any:
    phases = _mapping(test.get("seconds"))
    seconds = round(sum(_number(each) for each in phases.values()), 1)
    if label == Verdict.PASSED.value:
        return seconds
    tries = [each for each in test.get("tries") or [] if isinstance(each, dict)]
    fine = ("", Verdict.PASSED.value, Verdict.FLAKY.value)
    failed = next((each for each in tries if each.get("verdict", "") not in fine), {})
    flaky = label == Verdict.FLAKY.value
    further = {
        "signature": str(test.get("signature") or (failed.get("signature") if flaky else "") or ""),
        "reason": first_line(test.get("reason"))[:REASON],
        "known": str(_mapping(test.get("known")).get("key", "")),
        "was": str(failed.get("verdict", "")) if flaky else "",
    }
    return {"verdict": label, "seconds": seconds} | {k: v for k, v in further.items() if v}


def first_line(reason: object) -> str:
    """Return the first line of a failure's text, as people read it."""
    return str(reason or "").strip().partition("\n")[0].removeprefix(_CLASS)


def _rank(cell: Any) -> int:
    label = cell["verdict"] if isinstance(cell, dict) else Verdict.PASSED.value
    return _WORST.index(label) if label in _WORST else 0


def _facts(facts: Any) -> dict[str, str]:
    """Return the facts of an architecture: texts, and a digest of what is longer."""
    texts = {}
    for name, value in _mapping(facts).items():
        if isinstance(value, (dict, list)):
            text = json.dumps(value, sort_keys=True)
            texts[name] = hashlib.sha256(text.encode()).hexdigest()[:SHORT]
        else:
            text = str(value)
            texts[name] = text[:SHORT] if _DIGEST.fullmatch(text) else text
    return texts


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
