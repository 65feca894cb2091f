"""Samples beside a budget: how they are paired, judged, printed and kept."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = 2
"""Version of the JSON's layout."""


class Standing(StrEnum):
    """How a row stands to its budget."""

    WITHIN = "within"
    OVER = "over"
    NONE = "-"
    MISSING = "not measured"


class Judged(StrEnum):
    """The figure of a row that a budget limits."""

    MEDIAN = "median"
    WORST = "worst"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Budget:
    """A goal.

    Attributes:
        limit: In the row's unit; for :attr:`Judged.RATIO` a plain number.
        judged: The figure that it limits.
        at_least: Whether more is better: the limit is a floor, and the worst sample is the least.
    """

    limit: float
    judged: Judged = Judged.MEDIAN
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """Whether a value keeps the budget; the limit itself keeps it."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: one measurement of one subject.

    Attributes:
        measurement: The quantity: ``console command``.
        subject: The tool measured: ``harness``, ``raw wire``, ``labgrid QEMUDriver``.
        unit: The unit of the samples: ``ms``, ``s``, ``MB/s``, ``MB``.
        samples: The samples in the order they were taken; none if nothing was measured.
        bare: The bare tool's samples of the same rounds, in the same order; or none.
        budget: The goal, or ``None``.
        note: A note for readers; the reason if nothing was measured.
    """

    measurement: str
    subject: str
    unit: str
    samples: tuple[float, ...] = ()
    bare: tuple[float, ...] = ()
    budget: Budget | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each sample divided by the bare tool's of the same round; empty without the bare tool."""
        if not self.bare:
            return ()
        return tuple(ours / bare for ours, bare in zip(self.samples, self.bare, strict=True))

    @property
    def ratio(self) -> float | None:
        """The median of the ratios: a load that slows both sides of a round cancels out."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def worst(self) -> float:
        """The worst sample by the budget's direction; the greatest without a budget."""
        return min(self.samples) if self.budget and self.budget.at_least else max(self.samples)

    @property
    def value(self) -> float | None:
        """The figure that the budget limits; ``None`` without a budget or samples."""
        if self.budget is None or not self.samples:
            return None
        if self.budget.judged is Judged.RATIO:
            return self.ratio
        return self.worst if self.budget.judged is Judged.WORST else self.median

    @property
    def standing(self) -> Standing:
        """How the row stands to its budget."""
        if not self.samples:
            return Standing.MISSING
        if self.budget is None:
            return Standing.NONE
        value = self.value
        if value is None:
            return Standing.MISSING
        return Standing.WITHIN if self.budget.met_by(value) else Standing.OVER

    def record(self) -> dict[str, Any]:
        """Return the row as JSON contains it."""
        content: dict[str, Any] = {
            "measurement": self.measurement,
            "subject": self.subject,
            "unit": self.unit,
            "standing": self.standing.value,
            "note": self.note,
            "samples": list(self.samples),
        }
        if self.samples:
            content |= {
                "n": len(self.samples),
                "median": self.median,
                "min": min(self.samples),
                "max": max(self.samples),
            }
        if self.bare:
            content |= {"bare": list(self.bare), "ratio": self.ratio}
        if self.budget is not None:
            content["budget"] = {
                "limit": self.budget.limit,
                "judged": self.budget.judged.value,
                "at_least": self.budget.at_least,
                "value": self.value,
            }
        return content


def missing(
    measurement: str, subject: str, unit: str, reason: str, budget: Budget | None = None
) -> Row:
    """Return the row of a measurement that was not made, with the reason."""
    return Row(measurement, subject, unit, budget=budget, note=reason)


def paired(
    rounds: int, sides: Mapping[str, Callable[[], float]], say: Callable[[str], None]
) -> dict[str, tuple[float, ...]]:
    """Measure sides in turn, round by round: A B, B A, A B, ...

    The speed of a shared host changes. The sides of one round meet about the same speed, so their ratio
    says more than either time. No side is always first.

    Args:
        rounds: The number of samples of each side.
        sides: The measuring functions by name; each returns one sample.
        say: Called with a line for each sample.
    """
    by_side: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            sample = sides[name]()
            by_side[name].append(sample)
            say(f"round {number + 1}/{rounds}, {name}: {sample:.4g}")
    return {name: tuple(samples) for name, samples in by_side.items()}


@dataclass(frozen=True, slots=True)
class Context:
    """The arguments of every benchmark.

    Attributes:
        quick: Few samples, little output.
        folder: Scratch space on a disk; removed at the end.
        say: Prints one line of progress.
    """

    quick: bool
    folder: Path
    say: Callable[[str], None]

    def pick(self, full: int, quick: int) -> int:
        """Return the count or size for this run."""
        return quick if self.quick else full


@dataclass(slots=True)
class Report:
    """The rows of a run.

    Attributes:
        host: Facts of the host; no names, no paths.
        quick: Whether it was a quick run.
        rows: The rows, in order.
        failed: The error of each benchmark that failed; its rows are missing.
    """

    host: dict[str, Any]
    quick: bool
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def over(self) -> list[Row]:
        """The rows over their budget."""
        return [row for row in self.rows if row.standing is Standing.OVER]

    @property
    def unmeasured(self) -> list[Row]:
        """The rows with a budget and without a value."""
        return [row for row in self.rows if row.budget and row.standing is Standing.MISSING]

    def status(self, *, strict: bool) -> int:
        """Return the exit status; budgets are goals and count only if ``strict``."""
        if self.failed:
            return 1
        return 1 if strict and (self.over or self.unmeasured) else 0

    def record(self) -> dict[str, Any]:
        """Return the report as JSON contains it."""
        return {
            "schema": SCHEMA,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": self.quick,
            "host": self.host,
            "rows": [row.record() for row in self.rows],
            "failed": self.failed,
        }

    def write(self, folder: Path) -> Path:
        """Write the report to ``TIMESTAMP.json``, in UTC, and return the path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
        path.write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")
        return path


def figure(value: float) -> str:
    """Return a number for people: three significant digits, no exponent."""
    if value == 0:
        return "0"
    digits = 0
    while digits < 6 and abs(value) * 10**digits < 100:
        digits += 1
    return f"{value:.{digits}f}"


def goal(row: Row) -> str:
    """Return the budget of a row for people."""
    if row.budget is None:
        return ""
    sign = ">=" if row.budget.at_least else "<="
    unit = "x raw" if row.budget.judged is Judged.RATIO else row.unit
    return f"{sign} {figure(row.budget.limit)} {unit}"


HEADINGS: Final = (
    "measurement",
    "subject",
    "median",
    "min",
    "max",
    "n",
    "x raw",
    "budget",
    "standing",
)


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row, one for each of :data:`HEADINGS`."""
    if not row.samples:
        return (row.measurement, row.subject, "", "", "", "0", "", goal(row), row.standing.value)
    return (
        row.measurement,
        row.subject,
        f"{figure(row.median)} {row.unit}",
        figure(min(row.samples)),
        figure(max(row.samples)),
        str(len(row.samples)),
        "" if row.ratio is None else figure(row.ratio),
        goal(row),
        row.standing.value,
    )


def notes(rows: Iterable[Row]) -> Sequence[str]:
    """Return the notes of the rows, one line each."""
    return [f"{row.measurement}, {row.subject}: {row.note}" for row in rows if row.note]
