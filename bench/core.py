"""What a benchmark yields: samples beside a budget, and how they are paired, printed and kept."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = 1
"""Version of the JSON's layout."""


class Verdict(StrEnum):
    """How a result stands to its budget."""

    WITHIN = "within"
    OVER = "over"
    NONE = "-"
    MISSING = "not measured"


class Judged(StrEnum):
    """Which figure of a result a budget is about."""

    MEDIAN = "median"
    WORST = "worst"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Budget:
    """A goal.

    Attributes:
        limit: In the result's unit; for :attr:`Judged.RATIO` a plain number.
        judged: The figure it is about.
        at_least: Whether more is better: the limit is a floor, and the worst sample the least.
    """

    limit: float
    judged: Judged = Judged.MEDIAN
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """Whether a value keeps the budget; the limit itself does."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Result:
    """One row: one subject measured at one thing.

    Attributes:
        what: The thing measured: ``console command``.
        subject: Who did it: ``harness``, ``raw socket``, ``labgrid QEMUDriver``.
        unit: Of the samples: ``ms``, ``s``, ``MB/s``, ``MB``.
        samples: In the order they were taken; none if it was not measured.
        bare: The bare tool's samples of the same rounds, in the same order, or none.
        budget: The goal, or ``None``.
        note: What a reader has to know of the row; if it was not measured, why.
    """

    what: str
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
        """Each sample by the bare tool's of the same round; empty without the bare tool."""
        if not self.bare:
            return ()
        return tuple(ours / bare for ours, bare in zip(self.samples, self.bare, strict=True))

    @property
    def ratio(self) -> float | None:
        """The median of the ratios: what both sides of a round suffer alike cancels out."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def worst(self) -> float:
        """The worst sample, by the budget's direction; the greatest without a budget."""
        return min(self.samples) if self.budget and self.budget.at_least else max(self.samples)

    @property
    def value(self) -> float | None:
        """The figure that the budget is about."""
        if self.budget is None or not self.samples:
            return None
        if self.budget.judged is Judged.RATIO:
            return self.ratio
        return self.worst if self.budget.judged is Judged.WORST else self.median

    @property
    def verdict(self) -> Verdict:
        """How it stands to its budget."""
        if not self.samples:
            return Verdict.MISSING
        if self.budget is None:
            return Verdict.NONE
        value = self.value
        if value is None:
            return Verdict.MISSING
        return Verdict.WITHIN if self.budget.met_by(value) else Verdict.OVER

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        told: dict[str, Any] = {
            "what": self.what,
            "subject": self.subject,
            "unit": self.unit,
            "verdict": self.verdict.value,
            "note": self.note,
            "samples": list(self.samples),
        }
        if self.samples:
            told |= {
                "n": len(self.samples),
                "median": self.median,
                "min": min(self.samples),
                "max": max(self.samples),
            }
        if self.bare:
            told |= {"bare": list(self.bare), "ratio": self.ratio}
        if self.budget is not None:
            told["budget"] = {
                "limit": self.budget.limit,
                "judged": self.budget.judged.value,
                "at_least": self.budget.at_least,
                "value": self.value,
            }
        return told


def missing(what: str, subject: str, unit: str, why: str, budget: Budget | None = None) -> Result:
    """Return the row of what was not measured, and why."""
    return Result(what, subject, unit, budget=budget, note=why)


def paired(
    rounds: int, sides: Mapping[str, Callable[[], float]], say: Callable[[str], None]
) -> dict[str, tuple[float, ...]]:
    """Measure sides in turn, round by round: A B, B A, A B, ...

    A machine that others use is now fast and now slow. Sides of one round see about the same of
    it, so their ratio says more than either time; and none is always first.

    Args:
        rounds: How many samples of each.
        sides: What measures, by name; each returns one sample.
        say: Told of each sample.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            sample = sides[name]()
            taken[name].append(sample)
            say(f"round {number + 1}/{rounds}, {name}: {sample:.4g}")
    return {name: tuple(samples) for name, samples in taken.items()}


@dataclass(frozen=True, slots=True)
class Context:
    """What every benchmark is given.

    Attributes:
        quick: Few samples, little output.
        folder: Scratch space on a disk; emptied at the end.
        say: Prints one line of progress.
    """

    quick: bool
    folder: Path
    say: Callable[[str], None]

    def pick(self, full: int, quick: int) -> int:
        """Return the count or size for this kind of run."""
        return quick if self.quick else full


@dataclass(slots=True)
class Report:
    """All results of a run.

    Attributes:
        host: What the host is: no names, no paths.
        quick: Whether it was a quick run.
        results: The rows, in order.
        failed: Benchmarks that broke, and the error; their rows are missing.
    """

    host: dict[str, Any]
    quick: bool
    results: list[Result] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def over(self) -> list[Result]:
        """The rows over their budget."""
        return [row for row in self.results if row.verdict is Verdict.OVER]

    @property
    def unmeasured(self) -> list[Result]:
        """The rows that have a budget and no value."""
        return [row for row in self.results if row.budget and row.verdict is Verdict.MISSING]

    def status(self, *, strict: bool) -> int:
        """Return the exit status: budgets are goals, so only ``strict`` makes them count."""
        if self.failed:
            return 1
        return 1 if strict and (self.over or self.unmeasured) else 0

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "schema": SCHEMA,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": self.quick,
            "host": self.host,
            "results": [row.record() for row in self.results],
            "failed": self.failed,
        }

    def write(self, folder: Path) -> Path:
        """Write it as ``TIMESTAMP.json``, in UTC, and return the path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
        path.write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")
        return path


def figure(value: float) -> str:
    """Return a number as a person reads it: three significant digits, no exponent."""
    if value == 0:
        return "0"
    digits = 0
    while digits < 6 and abs(value) * 10**digits < 100:
        digits += 1
    return f"{value:.{digits}f}"


def goal(row: Result) -> str:
    """Return the budget of a row as a person reads it."""
    if row.budget is None:
        return ""
    sign = ">=" if row.budget.at_least else "<="
    unit = "x raw" if row.budget.judged is Judged.RATIO else row.unit
    return f"{sign} {figure(row.budget.limit)} {unit}"


HEADINGS: Final = ("what", "who", "median", "min", "max", "n", "x raw", "budget", "verdict")


def cells(row: Result) -> tuple[str, ...]:
    """Return the cells of a row of the table, as :data:`HEADINGS` names them."""
    if not row.samples:
        return (row.what, row.subject, "", "", "", "0", "", goal(row), row.verdict.value)
    return (
        row.what,
        row.subject,
        f"{figure(row.median)} {row.unit}",
        figure(min(row.samples)),
        figure(max(row.samples)),
        str(len(row.samples)),
        "" if row.ratio is None else figure(row.ratio),
        goal(row),
        row.verdict.value,
    )


def notes(results: Iterable[Result]) -> Sequence[str]:
    """Return what has to be known of the rows, one line each."""
    return [f"{row.what}, {row.subject}: {row.note}" for row in results if row.note]
