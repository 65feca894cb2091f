"""What the page of a nightly shows, out of a history: a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from harness.errors import Verdict
from harness.evidence import history as lines
from harness.evidence.history import Line
from harness.gate import history
from harness.gate.history import Story
from harness.known import KnownFailures
from harness.known.history import Standing, standings

SOON: int = 14
"""Days before its end from which a known failure is shown."""

TOP: int = 15
"""Tests of a list."""

WORST: tuple[str, ...] = (
    *("product", "test", "timeout", "infra", "interrupted", "flaky", "flaky-infra", "known"),
    "passed",
)
"""What a test may have come to, the worst first."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a suite came to in one night.

    Attributes:
        counts: How many tests came to what, the worst first.
        url: Where the report can be read; empty if that is not known.
    """

    counts: dict[str, int]
    url: str

    @property
    def worst(self) -> str:
        """The worst that a test came to."""
        return next(iter(self.counts))


@dataclass(frozen=True, slots=True)
class Row:
    """A suite on an image and an architecture.

    Attributes:
        image: ``NAME/VARIANT``, or the name of an image of the catalogue that was not run.
        arch: The architecture.
        suite: The folder of the tests; empty for an image that was not run.
        cells: By night; a night in which it was not run is left out.
    """

    image: str
    arch: str
    suite: str
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Content:
    """What the page shows.

    Attributes:
        nights: The nights, the oldest first.
        runs: How many runs they have.
        rows: The matrix.
        trend: ``passed``, ``flaky`` and ``infra`` in percent, by night.
        last: What the tests of the last night came to, the worst first.
        failing: Tests that fail now, those that began last first.
        flaky: Tests that were flaky, by the host or by themselves, the most often first.
        slowest: Tests by their median, the slowest first.
        expiring: Known failures that have expired, or will soon.
        known: How many known failures there are; ``None`` if there is no file of them.
        today: The day by which they are judged, in ISO 8601; empty without them.
    """

    nights: list[str]
    runs: int
    rows: list[Row]
    trend: dict[str, dict[str, float]]
    last: dict[str, int]
    failing: list[Story]
    flaky: list[Story]
    slowest: list[Story]
    expiring: list[Standing]
    known: int | None
    today: str


def gather(
    runs: Sequence[Line],
    known: KnownFailures | None = None,
    catalogue: Iterable[tuple[str, str]] = (),
) -> Content:
    """Return what the page shows.

    Args:
        runs: The runs of the nights, the oldest first.
        known: The known failures; ``None`` if the project has no file of them.
        catalogue: Name and architecture of each image that a nightly could run.
    """
    by_night = history.nights(runs)
    rows: dict[tuple[str, str, str], Row] = {}
    trend: dict[str, dict[str, float]] = {}
    last: dict[str, int] = {}
    for night, of_night in by_night.items():
        ended = _last_outcomes(history.stories(of_night))
        cells: dict[tuple[str, str, str], dict[str, tuple[str, str]]] = {}
        for story, label, url in ended:
            if story.arch:
                key = (story.image, story.arch, _suite(story.test))
                cells.setdefault(key, {})[story.test] = (label, url)
        for key, tests in cells.items():
            row = rows.setdefault(key, Row(*key))
            counts = _in_order(Counter(label for label, _ in tests.values()))
            worst = next(iter(counts))
            url = next(url for label, url in tests.values() if label == worst)
            row.cells[night] = Cell(counts, url)
        last = _in_order(Counter(label for _, label, _ in ended))
        trend[night] = history.rates({k: n for k, n in last.items() if k != "interrupted"})
    seen = {(image.partition("/")[0], arch) for image, arch, _ in rows}
    absent = [Row(name, arch, "") for name, arch in sorted(set(catalogue) - seen)]
    stories = history.stories(runs)
    turned = [(turn.bad["began"], story) for story in stories if (turn := story.turn) is not None]
    shaky = [(_shaky(story), story) for story in stories if _shaky(story)]
    timed = [(story.median, story) for story in stories if story.median is not None]
    return Content(
        nights=list(by_night),
        runs=len(runs),
        rows=[rows[key] for key in sorted(rows)] + absent,
        trend=trend,
        last=last,
        failing=[story for _, story in sorted(turned, key=lambda each: each[0], reverse=True)],
        flaky=[s for _, s in sorted(shaky, key=lambda each: each[0], reverse=True)][:TOP],
        slowest=[s for _, s in sorted(timed, key=lambda each: each[0], reverse=True)][:TOP],
        expiring=[] if known is None else _expiring(known, runs),
        known=None if known is None else len(known.entries),
        today="" if known is None else known.today.isoformat(),
    )


def _last_outcomes(stories: Iterable[Story]) -> list[tuple[Story, str, str]]:
    """Return what each test came to in the end, and where that can be read.

    A job that the host failed is tried once more in the same night: the second one counts.
    """
    ended = []
    for story in stories:
        outcome = story.outcomes[-1]
        ended.append((story, outcome.label, str(outcome.run.get("url", ""))))
    return ended


def _suite(test: str) -> str:
    file = PurePosixPath(test.partition("::")[0])
    return str(file.parent if len(file.parts) > 1 else file)


def _in_order(counts: Counter[str]) -> dict[str, int]:
    order = [*(name for name in counts if name not in WORST), *WORST]
    return {name: counts[name] for name in order if counts[name]}


def _shaky(story: Story) -> float:
    return history.rate(story.counts, Verdict.FLAKY.value, *history.INFRA)


def _expiring(known: KnownFailures, runs: Sequence[Line]) -> list[Standing]:
    ends = sorted(
        (entry for entry in known.entries if (entry.expires - known.today).days <= SOON),
        key=lambda entry: (entry.expires, entry.test),
    )
    return standings(ends, [lines.expand(run) for run in runs])
