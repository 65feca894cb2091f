"""The history of a nightly: one file, one line a run, which a workflow keeps.

A branch or an artifact holds it. The file is the set of its runs in the order of their beginnings. So
adding is idempotent, and neither the order of runs nor the number of files that are joined matters.
It is bounded by nights: a night lasts from noon to noon in UTC, so that a run that begins before
midnight and one that begins after it belong together, and has the date on which it ends. The format
of a line is in :mod:`harness.evidence.history`.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from harness import jsonfile
from harness.errors import StoreError, UsageError, Verdict
from harness.evidence import history as lines
from harness.evidence.history import Line
from harness.known import history as known_history

FILE: Final = Path("history.jsonl")
KEEP: Final = 400
"""Nights that a history keeps: a year, and a month to compare it with."""

BAD: Final = (Verdict.PRODUCT.value, Verdict.TEST.value, Verdict.TIMEOUT.value)
"""Verdicts of a test that failed, and not by the host's fault."""


@dataclass(frozen=True, slots=True)
class Added:
    """What adding did.

    Attributes:
        new: Runs that were not in the file.
        runs: Runs that are in it now.
        nights: Nights that are in it now.
        dropped: Runs that were too old, the given ones among them.
        empty: Places in which no results of a run were.
    """

    new: int
    runs: int
    nights: int
    dropped: int
    empty: list[Path]


def night(began: str) -> str:
    """Return the night of a run, as the date on which it ends; empty if the beginning is no time.

    Args:
        began: The beginning of the run, in ISO 8601.
    """
    try:
        moment = datetime.datetime.fromisoformat(began)
    except ValueError:
        return ""
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC)
    try:
        return (moment + datetime.timedelta(hours=12)).date().isoformat()
    except OverflowError:
        return ""


def read(path: Path) -> list[Line]:
    """Return the runs of a file, the oldest first; none if there is no such file.

    Raises:
        UsageError: A line is none of ours; names ``file:line``.
    """
    return _joined(lines.parse(path)) if path.exists() else []


def add(path: Path, places: Iterable[Path], *, keep: int = KEEP, url: str = "") -> Added:
    """Add runs to a file, which is made if it is not there.

    Args:
        path: The file.
        places: Folders of runs, ``results.json`` files, or other histories.
        keep: How many nights are kept, counted back from the newest in the file.
        url: Where the report or the log of these runs can be read; not for runs from a history.

    Raises:
        UsageError: A place does not exist or is damaged, the file is damaged, or ``keep`` is none.
        StoreError: The file cannot be written; its old content is still there.
    """
    if keep < 1:
        raise UsageError(f"--keep {keep}: at least 1 night")
    added: list[Line] = []
    empty: list[Path] = []
    for place in places:
        if place.is_file() and place.suffix == lines.SUFFIX:
            added += lines.parse(place)
        elif runs := known_history.runs([place]):
            added += [lines.compact(run, url=url) for run in runs]
        else:
            empty.append(place)
    if undated := [line for line in added if not night(str(line.get("began", "")))]:
        raise UsageError(
            f"{len(undated)} runs do not say when they began: {undated[0].get('began')!r}",
            hint="they are no results of harness acceptance; leave them out",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            before = read(path)
            joined = _joined([*before, *added])
            kept = _newest(joined, keep)
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in kept)
            jsonfile.write_text(path, text)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error
    known = {line["key"] for line in before}
    return Added(
        new=sum(line["key"] not in known for line in kept),
        runs=len(kept),
        nights=len({night(line["began"]) for line in kept}),
        dropped=len(joined) - len(kept),
        empty=empty,
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder: two that add at once would lose the runs of one."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _joined(runs: Iterable[Line]) -> list[Line]:
    """Return each run once, in order. Of two accounts of one run the fuller one counts."""
    once: dict[str, Line] = {}
    for line in runs:
        other = once.get(line["key"], line)
        best = max(other, line, key=_weight)
        if url := max(str(other.get("url", "")), str(line.get("url", ""))):
            best = best | {"url": url}
        once[line["key"]] = best
    return sorted(once.values(), key=lambda line: (line["began"], line["key"]))


def _weight(line: Line) -> tuple[int, str]:
    ended = sum(len(row) for row in line["tests"].values()) + sum(line["skipped"].values())
    return ended, json.dumps({**line, "url": ""}, sort_keys=True)


def _newest(runs: list[Line], keep: int) -> list[Line]:
    nights = sorted({night(line["began"]) for line in runs})[-keep:]
    return [line for line in runs if night(line["began"]) in nights]


# --- what it says -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test came to in one run.

    Attributes:
        run: The run's line.
        verdict: The verdict, or ``interrupted``.
        seconds: The seconds of its last try.
        signature: The signature of its failure; empty if it did not fail.
        reason: The first line of its failure.
        was: The verdict of the failed try of a flaky test.
        known: The key of the known failure.
    """

    run: Line
    verdict: str
    seconds: float
    signature: str = ""
    reason: str = ""
    was: str = ""
    known: str = ""

    @property
    def label(self) -> str:
        """The verdict; ``flaky-infra`` for a test that passed once the host had let it."""
        by_host = self.verdict == Verdict.FLAKY.value and self.was == Verdict.INFRA.value
        # The judge tries a job of the plan once more only if it ended by infra.
        again = int((self.run.get("plan") or {}).get("attempt") or 1) > 1
        passed = self.verdict == Verdict.PASSED.value
        return "flaky-infra" if by_host or (passed and again) else self.verdict


@dataclass(frozen=True, slots=True)
class Turn:
    """When a test began to fail.

    Attributes:
        good: The last run in which it passed; ``None`` if there is none.
        bad: The first run after that in which it failed.
        facts: Name, old and new value of what differs between the two.
    """

    good: Line | None
    bad: Line
    facts: list[tuple[str, str, str]]


@dataclass(slots=True)
class Story:
    """What became of a test on an image and an architecture, the oldest run first.

    Attributes:
        image: The image's name, and its variant: ``skiff/core``; empty for a test without an image.
        arch: The architecture.
        test: The node id.
        outcomes: What it came to.
    """

    image: str
    arch: str
    test: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How often it came to what; an interrupted test says nothing and is not counted."""
        return Counter(each.label for each in self.outcomes if each.verdict != "interrupted")

    @property
    def median(self) -> float | None:
        """The median of the seconds in which it passed; ``None`` if it never did."""
        fine = (Verdict.PASSED.value, Verdict.FLAKY.value)
        times = [each.seconds for each in self.outcomes if each.verdict in fine]
        return round(statistics.median(times), 1) if times else None

    @property
    def turn(self) -> Turn | None:
        """When it began to fail; ``None`` if it does not fail now.

        Runs in which the host failed say nothing of the image, and neither do known and flaky ones.
        """
        says = [each for each in self.outcomes if each.verdict in (*BAD, Verdict.PASSED.value)]
        if not says or says[-1].verdict not in BAD:
            return None
        bad = says[-1]
        good: Line | None = None
        for each in reversed(says):
            if each.verdict not in BAD:
                good = each.run
                break
            bad = each
        changes = [] if good is None else differing(good, bad.run, self.arch)
        return Turn(good, bad.run, changes)


def rate(counts: Mapping[str, int], *labels: str) -> float:
    """Return the share of some labels, in percent with one decimal; 0 where nothing was counted."""
    total = sum(counts.values())
    return round(100 * sum(counts.get(each, 0) for each in labels) / total, 1) if total else 0.0


INFRA: Final = (Verdict.INFRA.value, "flaky-infra")
"""Labels of tests at which the host failed."""


def rates(counts: Mapping[str, int]) -> dict[str, float]:
    """Return ``passed``, ``flaky`` and ``infra`` in percent of the tests that were counted."""
    return {
        "passed": rate(counts, Verdict.PASSED.value),
        "flaky": rate(counts, Verdict.FLAKY.value),
        "infra": rate(counts, *INFRA),
    }


def stories(
    runs: Iterable[Line], *, image: str = "", arch: str = "", tests: Sequence[str] = ()
) -> list[Story]:
    """Return what became of each test, sorted by image, architecture and test.

    Args:
        runs: The runs, the oldest first.
        image: ``NAME`` or ``NAME/VARIANT``; all by default.
        arch: The architecture; all by default.
        tests: Patterns of which a test's node id matches one; ``*`` stands for any text. A pattern
            without one is a part of the id.
    """
    by_test: dict[tuple[str, str, str], Story] = {}
    for run in runs:
        for each in lines.expand(run)["tests"]:
            name = image_of(run) if each["arch"] else ""
            if (image and image not in (name, name.partition("/")[0])) or (
                arch and arch != each["arch"]
            ):
                continue
            if tests and not any(_matches(each["id"], pattern) for pattern in tests):
                continue
            key = (name, each["arch"], each["id"])
            by_test.setdefault(key, Story(*key)).outcomes.append(
                Outcome(
                    run,
                    each["verdict"] or each["outcome"],
                    each["seconds"]["call"],
                    each["signature"],
                    each["reason"],
                    each["was"],
                    (each["known"] or {}).get("key", ""),
                )
            )
    return [by_test[key] for key in sorted(by_test)]


def image_of(run: Line) -> str:
    """Return the image of a run as ``NAME/VARIANT``; empty if it had none."""
    image = run["image"]
    return "/".join(filter(None, (image["name"], image["variant"]))) if image["name"] else ""


def differing(old: Line, new: Line, arch: str) -> list[tuple[str, str, str]]:
    """Return the facts in which two runs differ: name, old value, new value."""
    before, after = _facts(old, arch), _facts(new, arch)
    return [
        (name, before.get(name, ""), after.get(name, ""))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _facts(run: Line, arch: str) -> dict[str, str]:
    plan = run.get("plan") or {}
    return {
        "commit": str(plan.get("commit", ""))[: lines.SHORT],
        "image version": run["image"]["version"],
        **{f"image {name}": text for name, text in run["arches"].get(arch, {}).items()},
        **run["versions"],
    }


def _matches(test: str, pattern: str) -> bool:
    if "*" not in pattern:
        return pattern in test
    # "[" is no wildcard here: it begins a test's parameters.
    return fnmatchcase(test, pattern.replace("[", "[[]"))


def nights(runs: Iterable[Line]) -> dict[str, list[Line]]:
    """Return the runs by night, the oldest first."""
    by_night: dict[str, list[Line]] = {}
    for run in runs:
        by_night.setdefault(night(run["began"]), []).append(run)
    return dict(sorted(by_night.items()))
