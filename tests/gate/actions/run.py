"""What ``./run`` is in the checkouts of the tests of workflows: it keeps a record, and does as planted.

``PLANTED`` is a folder: ``outcomes.json`` says what happens, ``record.jsonl`` what was run. The judge,
the merged report, the matrix of second attempts and ``needs`` are the real ones: they decide.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

PLANTED = Path(os.environ["PLANTED"])
OUTCOMES: dict[str, Any] = json.loads((PLANTED / "outcomes.json").read_text())


def harness(words: list[str]) -> int:
    # Imported here, since most steps need nothing of it.
    from harness.cli import main

    return main(words)


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words else ""


def main(words: list[str]) -> int:
    entry = {
        "workflow": os.environ["GITHUB_WORKFLOW"],
        "job": os.environ["GITHUB_JOB"],
        "words": words,
    }
    with (PLANTED / "record.jsonl").open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    if words[0] == "gate":
        return harness(words)
    if words[0] == "needs":
        os.execv(sys.executable, [sys.executable, ".ci/needs.py", *words[1:]])
    if words[:2] == ["harness", "plan"]:
        return plan(words)
    if words[:2] == ["harness", "report"]:
        return harness(words[1:])
    if words[:2] == ["harness", "acceptance"]:
        return acceptance(words)
    if words[0] == "take-images":
        if not Path(words[1], "skiff-core-1", "manifest.json").exists():
            return 1
        (PLANTED / f"taken-{os.environ['JOB']}-{os.environ['ATTEMPT']}").touch()
    if words[:2] == ["harness", "images"]:
        entries = Path(os.environ["HARNESS_CACHE"], "entries", "skiff-core-1")
        entries.mkdir(parents=True, exist_ok=True)
        (entries / "manifest.json").write_text("{}")
    for name in ("--file", "--output"):
        if words[:2] == ["harness", "history"] and (path := option(words, name)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    return int(OUTCOMES.get(" ".join(words[:2]), 0))


def plan(words: list[str]) -> int:
    if "--from" in words:
        return harness(words[1:])
    if status := OUTCOMES.get("plan", 0):
        return int(status)
    target = Path(option(words, "--output"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text((PLANTED / "plan.json").read_text())
    legs = [
        {"job": job["id"], "timeout": job["timeout_minutes"], "labels": job["labels"]}
        for job in json.loads(target.read_text())["jobs"]
    ]
    print(f"matrix={json.dumps({'include': legs})}\ncount={len(legs)}")
    return 0


def acceptance(words: list[str]) -> int:
    job, attempt = option(words, "--job"), int(option(words, "--attempt"))
    planned = json.loads(Path(option(words, "--plan")).read_text())
    (mine,) = [each for each in planned["jobs"] if each["id"] == job]
    with (PLANTED / "record.jsonl").open("a") as stream:
        stream.write(
            json.dumps(
                {
                    "attempt": attempt,
                    "of": job,
                    "images": (PLANTED / f"taken-{job}-{attempt}").exists(),
                }
            )
            + "\n"
        )
    outcome = OUTCOMES.get("jobs", {}).get(job, {}).get(str(attempt), "passed")
    folder = Path(option(words, "--evidence"), "20261129-010203")
    folder.mkdir(parents=True, exist_ok=True)
    ended = {"passed": 0, "product": 1, "infra": 11}.get(outcome)
    tests = [
        {
            "id": test,
            "outcome": "passed" if outcome == "passed" else "failed",
            "verdict": outcome,
            "reason": "" if outcome == "passed" else f"planted: {outcome}",
            "evidence": "",
            "seconds": {"call": 1.0},
        }
        for test in mine["tests"]
    ]
    if outcome == "removed":
        return 0
    content = {
        "format": 2,
        "began": "2026-11-29T01:02:03Z",
        "seconds": 1.0,
        "status": ended,
        "plan": {"id": planned["id"], "job": job, "attempt": attempt, "commit": planned["commit"]},
        "verdicts": {},
        # A run writes its results before it collects: one that is killed has left this.
        "tests": tests if ended is not None else [],
    }
    (folder / "results.json").write_text(json.dumps(content))
    if outcome == "killed":
        os.kill(os.getppid(), signal.SIGKILL)
    return int(ended or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
