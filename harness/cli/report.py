"""Write the report of a run: one HTML file, or text.

harness report writes report.html into the folder of the newest run, and prints its path; RUN names
others. --text prints the report as text instead, --json as one object.

--merge FILE writes one report of several runs: shards, architectures, nights. A RUN is then a folder or
the report.html of one, so a shard has to carry nothing else; or a folder of runs at any depth, such as
the artifacts of a gate, of which those that are cut off are left out. The order does not matter, and a
shard that is named twice counts once.

JSON: {"runs": [RUN]}. RUN has the keys of results.json; each of its tests also has "step", the step that
failed, "moment", its end in seconds after the test's start "clock", "first", the step of each machine
that failed first, "repeat", the lines that repeat the test, and "change": the last run in which the test
passed, the first in which it failed, and the facts in which they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from harness.cli.options import print_json, say
from harness.errors import HarnessError, UsageError

_NEWEST: Final = Path(".harness/runs/latest")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help=f"a run's folder, a folder of runs at any depth, or a report (default: {_NEWEST})",
    )
    parser.add_argument("--merge", type=Path, metavar="FILE", help="write one report of all RUNs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--text", action="store_true", help="print the report as text")
    form.add_argument("--json", action="store_true", help="print one JSON object")


def main(options: argparse.Namespace) -> int:
    """Write or print the reports."""
    from harness.evidence.report import page
    from harness.evidence.report.merge import merge
    from harness.evidence.report.text import text

    places: list[Path] = []
    records: list[dict[str, Any]] = []
    for place in options.runs or [_NEWEST]:
        for run, record in _records(place):
            places.append(run)
            records.append(record)
    if options.merge is not None:
        page.write(merge(records), options.merge)
    if options.text:
        sys.stdout.write(text(merge(records)))
    elif options.json:
        print_json(_index(merge(records)))
    elif options.merge is not None:
        print(options.merge)
    else:
        for place, record in zip(places, records, strict=True):
            if not place.is_dir():
                raise UsageError(
                    f"{place} is a report already",
                    hint="--merge FILE, --text and --json read reports",
                )
            target = place.resolve() / page.FILE
            page.write(record, target)
            print(target)
    return 0


def _records(place: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a run or a report with its record; of a folder of runs, such as a gate's results, each run.

    A run that was killed may have left results that are cut off: of a folder of runs, it is left out.
    """
    from harness.evidence.results import FILE

    below: list[Path] = []
    if place.is_dir() and not (place / FILE).exists():
        # Not `latest`, which leads to one of the others.
        below = [path.parent for path in sorted(place.rglob(FILE)) if not path.parent.is_symlink()]
    if not below:
        yield place, _record(place)
    for run in below:
        try:
            yield run, _record(run)
        except HarnessError as error:
            say(f"left out: {error.what}")


def _record(place: Path) -> dict[str, Any]:
    """Return the record of a run's folder, or of a report."""
    from harness.evidence.report import page, record

    if place.is_file():
        return page.read(place)
    return record.gather(place)


def _index(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without the evidence of its tests."""
    return {
        "runs": [
            run
            | {
                "tests": [
                    {name: value for name, value in test.items() if name != "detail"}
                    for test in run["tests"]
                ]
            }
            for run in record["runs"]
        ]
    }
