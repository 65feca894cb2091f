"""The record of a report: what it shows of one run or of many, as plain JSON, without any layout.

::

    {"format": 1, "runs": [
      {"name": "20261129-101500-4711", "began": "2026-11-29T10:15:00Z", ...    as in results.json
       "tests": [
         {"id": "suites/boot/test_live.py::test_login", "arch": "x86_64", ...  as in results.json
          "clock": 1795250813.3,             the start of the test, in seconds of the epoch
          "step": "run: id -u",              the step that failed
          "moment": 61.25,                   its end, in seconds since the start of the test
          "first": [{"machine", "step", "start", "end", "error", "verdict"}],   of each machine
          "repeat": ["./run acceptance ..."],
          "change": {"good": RUN, "bad": RUN, "facts": [[NAME, OLD, NEW]]},
          "detail": {"steps", "findings", "machines", "logs", "screens"}}]}]}

:func:`gather` reads a run's folder. :mod:`~harness.evidence.report.merge` joins records;
:mod:`~harness.evidence.report.text` and :mod:`~harness.evidence.report.page` show one. Credentials of
machines are not in it.
"""

from __future__ import annotations

import base64
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import StoreError, UsageError
from harness.evidence import results
from harness.evidence.report import logs, shape
from harness.evidence.run import BUNDLE, UNREDACTED

FORMAT: Final = 1

Record = dict[str, Any]
Run = dict[str, Any]
Test = dict[str, Any]

FINE: Final = ("passed", "skipped", "known")
"""What a test came to that needs no look."""

_CARRIED: Final = (
    "--accel",
    "--images",
    "--services",
    "--timeout-scale",
    "--cut",
    "--cuts",
    "--cut-seed",
)
"""Options that a line which repeats a test takes over from the run."""

_HOST: Final = "host"
"""The note on the host that a machine leaves when it stops."""

_AFTER: Final = (_HOST, "save for the bundle", "read the journal")
"""What Harness does to a machine after the test has failed."""

_SCREENS: Final = 6
_SCREEN_BYTES: Final = 1024 * 1024
_TEXTS: Final = ("qemu.stderr", "cpus.txt", "journal*", "failed*")
"""Files of text that a machine's folder may have; ``qemu.sh`` has its credentials and is none."""


def gather(folder: Path) -> Record:
    """Return the record of a run.

    Args:
        folder: The run's folder.

    Raises:
        UsageError: There is no such folder, it has no results, or its evidence still has secrets.
        StoreError: ``results.json`` cannot be read.
    """
    content = _results(folder)
    if (folder / UNREDACTED).exists():
        raise UsageError(
            f"{folder}: the run was ended before its declared secrets were taken out of its evidence",
            hint="read the files in it, and hand none of them on",
        )
    folder = folder.resolve()
    run: Run = {name: value for name, value in content.items() if name not in ("tests", "matrix")}
    run["name"] = folder.name
    run["services"] = _entries(folder / "services.jsonl")
    before = _earlier(folder, str(content.get("began", "")))
    run["tests"] = [_test(folder, run, dict(test), before) for test in content.get("tests", [])]
    return {"format": FORMAT, "runs": [run]}


def label(test: Mapping[str, Any]) -> str:
    """Return what a test came to: its verdict, or its outcome if it has none."""
    return str(test.get("verdict") or test.get("outcome") or "interrupted")


def _results(folder: Path) -> dict[str, Any]:
    path = folder / results.FILE
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        shape.check(content, shape.Results)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: there is no {results.FILE}",
            hint="name the folder of a run that has ended, below .harness/runs",
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return content


# --- one test ---------------------------------------------------------------------------------


def _test(folder: Path, run: Run, test: Test, before: list[dict[str, Any]]) -> Test:
    place = _place(folder, test)
    timeline = _json(place / "timeline.json") if place else {}
    steps = [step for step in timeline.get("steps", []) if isinstance(step, dict)]
    test["clock"] = timeline.get("began")
    step = _failed_step(steps, test)
    test["first"] = [] if label(test) in FINE else _first(steps, step)
    test["step"] = step["name"] if step else ""
    test["moment"] = _end(step) if step else _last(steps)
    test["repeat"] = _repeat(run, test, place)
    test["change"] = _change(run, test, before)
    test["detail"] = _detail(folder, place, timeline, steps) if place else None
    return test


def _place(folder: Path, test: Test) -> Path | None:
    """Return the folder of a test's evidence; one outside the run's is none of its."""
    name = str(test.get("evidence") or "")
    place = (folder / name).resolve()
    return place if name and place.is_relative_to(folder) and place.is_dir() else None


def _end(step: Mapping[str, Any]) -> float:
    return round(float(step["start"]) + float(step.get("seconds") or 0), 4)


def _last(steps: list[dict[str, Any]]) -> float:
    """Return the end of the last step of the test itself; notes on the host come when it has ended."""
    for number, step in reversed(list(enumerate(steps, 1))):
        if step["name"] not in _AFTER:
            after = steps[number : number + 1]
            return float(after[0]["start"]) if after else _end(step)
    return 0.0


def _first(steps: list[dict[str, Any]], failed: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the step of each machine that failed first, in the order of their ends.

    A machine with which the test went on after a step had failed: the test expected that.
    """
    went_on: dict[str, float] = {}
    for step in steps:
        if step["name"] not in _AFTER:
            machine = step.get("machine", "")
            went_on[machine] = max(went_on.get(machine, 0.0), step["start"])
    moments: dict[str, dict[str, Any]] = {}
    # The innermost step ends before those around it.
    for step in sorted(_failed(steps), key=lambda step: (_end(step), -step.get("depth", 0))):
        if step is failed or went_on.get(step.get("machine", ""), 0.0) <= _end(step):
            moments.setdefault(step.get("machine", ""), _moment(step))
    if failed is not None:
        moments.setdefault(failed.get("machine", ""), _moment(failed))
    return sorted(moments.values(), key=lambda each: (each["end"], each["machine"]))


def _moment(step: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": step.get("machine", ""),
        "step": step["name"],
        "start": step["start"],
        "end": _end(step),
        "error": step.get("error", ""),
    }


def _failed(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        step
        for step in steps
        if step.get("outcome") not in ("passed", "running") and step["name"] not in _AFTER
    ]


def _failed_step(steps: list[dict[str, Any]], test: Test) -> dict[str, Any] | None:
    """Return the step that failed a test: the innermost one with the words of the test's failure.

    A step may fail because the test expects it to; its words are not those of the test's failure. A
    command that ended with a status which fails the test is a step that passed.
    """
    reason = test.get("reason", "")
    if label(test) in FINE:
        return None
    named = [step for step in _failed(steps) if step.get("error") and step["error"] in reason]
    running = [step for step in steps if step.get("outcome") == "running"]
    commands = [
        step
        for step in reversed(steps)
        if (step.get("data") or {}).get("status") and step["name"].removeprefix("run: ") in reason
    ]
    candidates = named or running
    return (
        max(candidates, key=lambda step: step.get("depth", 0))
        if candidates
        else next(iter(commands), None)
    )


def _repeat(run: Run, test: Test, place: Path | None) -> list[str]:
    """Return the lines that repeat a test, ready to paste; the best one first."""
    lines = []
    if place and (place / BUNDLE).is_file():
        bundle = shlex.quote(str(place / BUNDLE))
        lines += [f"harness repro {bundle}", f"harness resurrect {bundle}"]
    command = [str(word) for word in run.get("command", [])]
    words = ["harness", "acceptance"] if "--acceptance" in command else ["pytest"]
    words.append(test["id"])
    if image := run.get("image", {}).get("reference"):
        words += ["--image", image]
    # In a run of several architectures the test's name has its own in it, and only there.
    arches = list(run.get("arches", {}))
    if len(arches) > 1:
        words += ["--arch", ",".join(arches)]
    elif test.get("arch"):
        words += ["--arch", test["arch"]]
    for word, value in zip(command, [*command[1:], ""], strict=False):
        name, equals, _ = word.partition("=")
        if name in _CARRIED:
            words += [word] if equals else [word, value]
    lines.append(shlex.join([*words, "--keep"]))
    return lines


# --- earlier runs -----------------------------------------------------------------------------


def _earlier(folder: Path, began: str) -> list[dict[str, Any]]:
    """Return the results of the runs beside this one that began before it, the newest first."""
    runs = []
    for path in folder.parent.glob(f"*/{results.FILE}"):
        if path.parent.name in (folder.name, "latest"):
            continue
        content = _json(path)
        if str(content.get("began", "")) < began and isinstance(content.get("tests"), list):
            content["name"] = path.parent.name
            content["by_test"] = {
                (test.get("id"), test.get("arch", "")): label(test) for test in content.pop("tests")
            }
            runs.append(content)
    return sorted(runs, key=lambda run: (run["began"], run["name"]), reverse=True)


def _change(run: Run, test: Test, before: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what changed from the last run in which a test passed to the first in which it failed."""
    if label(test) in (*FINE, "interrupted"):
        return None
    bad: Mapping[str, Any] = run
    for other in before:
        verdict = other["by_test"].get((test["id"], test.get("arch", "")))
        same = other.get("image", {}).get("name") == run.get("image", {}).get("name")
        if not same or verdict in (None, "skipped", "interrupted"):
            continue
        if verdict == "passed":
            old, new = _facts(other, test), _facts(bad, test)
            facts = [
                [name, old.get(name, ""), new.get(name, "")]
                for name in sorted(old.keys() | new.keys())
                if old.get(name) != new.get(name)
            ]
            return {"good": _brief(other), "bad": _brief(bad), "facts": facts}
        bad = other
    return None


def _brief(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": run["name"], "began": run.get("began", "")}


def _facts(run: Mapping[str, Any], test: Test) -> dict[str, str]:
    arch = run.get("arches", {}).get(test.get("arch", ""), {})
    packages = arch.get("packages") or {}
    return {
        **{
            f"image {name}": str(run.get("image", {}).get(name, ""))
            for name in ("variant", "version")
        },
        **{name: str(value) for name, value in arch.items() if name != "packages"},
        **{str(name): str(value) for name, value in run.get("versions", {}).items()},
        "host": str(run.get("host", {}).get("platform", "")),
        **{f"package {name}": str(version) for name, version in packages.items()},
    }


# --- evidence ---------------------------------------------------------------------------------


def _detail(
    folder: Path, place: Path, timeline: dict[str, Any], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    machines = sorted(path.parent for path in place.glob("*/machine.json"))
    began = float(timeline.get("began") or _oldest(machines))
    entries: list[logs.Log | None] = []
    facts: list[dict[str, Any]] = []
    screens: list[dict[str, Any]] = []
    for path in machines:
        name = path.name
        facts.append(_machine(path, folder))
        entries += (
            logs.console(path, name, name, began),
            logs.ssh(path / "ssh.jsonl", name, name, began),
            logs.qmp(path / "qmp.jsonl", name, name, began),
        )
        for pattern in _TEXTS:
            entries += [
                logs.plain(text, name, "file", name, began) for text in sorted(path.glob(pattern))
            ]
        screens += _screens(path, began)
    for path in sorted(place.glob("segment-*/faults.jsonl")):
        name = path.parent.name
        entries.append(logs.faults(path, name, name, began))
    until = began + max((_end(step) for step in steps), default=0.0)
    for path in sorted(folder.glob("services*/*-requests.jsonl")):
        server = path.name.removesuffix("-requests.jsonl")
        entries.append(logs.requests(path, server, path.parent.name, began, until))
    return {
        "steps": steps,
        "findings": timeline.get("findings", []),
        "machines": facts,
        "logs": [log for log in entries if log is not None],
        "screens": screens,
    }


def _oldest(machines: list[Path]) -> float:
    return min((path.stat().st_mtime for path in machines), default=0.0)


def _machine(path: Path, folder: Path) -> dict[str, Any]:
    """Return what a report says of a machine; its record also has credentials, which stay there."""
    record = _json(path / "machine.json")
    spec, argv = record.get("spec", {}), record.get("argv", [])
    options = dict(itertools.pairwise(argv))
    return {
        "name": path.name,
        "folder": str(path.relative_to(folder)),
        "time": record.get("time", ""),
        "versions": record.get("versions", {}),
        "provenance": record.get("provenance", {}),
        "cpus": spec.get("cpus"),
        "memory": spec.get("memory"),
        "firmware": (spec.get("firmware") or {}).get("kind", ""),
        "machine": str(options.get("-machine", "")).partition(",")[0],
        "cpu": str(options.get("-cpu", "")),
        "accel": (record.get("allocations") or {}).get("accel", ""),
        "nics": [[nic.get("name", ""), nic.get("mac", "")] for nic in spec.get("nics", [])],
        "origin": _json(path / "origin.json"),
    }


def _screens(path: Path, began: float) -> Iterator[dict[str, Any]]:
    for screen in sorted(path.glob("*.png"))[-_SCREENS:]:
        stat = screen.stat()
        entry = {
            "machine": path.name,
            "name": screen.name,
            "start": round(stat.st_mtime - began, 3),
        }
        if stat.st_size <= _SCREEN_BYTES:
            entry["png"] = base64.b64encode(screen.read_bytes()).decode()
        yield entry


def _entries(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(errors="replace").splitlines()]
    except (OSError, ValueError):
        return []


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if it cannot be read: a killed run left it so."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
