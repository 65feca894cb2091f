"""The verdicts of a run at a glance: how many tests of each suite have which, on each architecture.

::

    suite            x86_64                aarch64
    suites/boot      9 passed              8 passed, 1 product
    suites/upgrade   6 passed, 1 skipped   7 skipped
    all              15 passed, 1 skipped  8 passed, 1 product, 7 skipped

A suite is a folder of tests. Where all tests are in one folder, each of its files is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from harness.errors import Verdict
from harness.evidence.results import TestResult

Matrix = Mapping[str, Mapping[str, Mapping[str, int]]]
"""How many tests there are, by suite, architecture and verdict."""

_ORDER: Final = (
    *(Verdict.PASSED, Verdict.FLAKY, Verdict.KNOWN),
    *(Verdict.PRODUCT, Verdict.TEST, Verdict.TIMEOUT, Verdict.INFRA),
    *("skipped", "interrupted"),
)
"""What a test may have come to, in the order of a cell: good, bad, neither."""


def matrix(tests: Iterable[TestResult]) -> Matrix:
    """Return how many tests came to what; a test that has no architecture does not count.

    A test without a verdict counts by its outcome: ``skipped``, ``interrupted``.
    """
    counted = [test for test in tests if test.arch]
    files = [PurePosixPath(test.id.partition("::")[0]) for test in counted]
    by_file = len({file.parent for file in files}) < 2
    cells: dict[str, dict[str, Counter[str]]] = {}
    for test, file in zip(counted, files, strict=True):
        suite = str(file if by_file else file.parent)
        row = cells.setdefault(suite, {})
        row.setdefault(test.arch, Counter())[test.verdict or test.outcome] += 1
    return {
        suite: {arch: _in_order(row[arch]) for arch in row} for suite, row in sorted(cells.items())
    }


def table(rows: Matrix, arches: Sequence[str]) -> list[str]:
    """Return the lines of a matrix, in plain ASCII, with a column for each architecture."""
    totals: dict[str, Counter[str]] = {arch: Counter() for arch in arches}
    for row in rows.values():
        for arch, counts in row.items():
            totals[arch].update(counts)
    lines = [["suite", *arches]]
    for suite, row in [*rows.items(), ("all", totals)]:
        lines.append([suite, *(_cell(row.get(arch, {})) for arch in arches)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _cell(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in _in_order(counts).items()) or "-"


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {str(name): counts[name] for name in _ORDER if counts.get(name)}
