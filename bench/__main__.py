"""Run benchmarks: ``python -m bench [NAME...] [--quick] [--strict]``.

Prints a table beside the budgets and writes .harness/bench/TIMESTAMP.json. Budgets are goals: the
exit status is 0 when one is missed, and 1 if a benchmark failed. See docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console as Terminal
from rich.table import Table

from bench import peer
from bench.core import HEADINGS, Context, Report, Standing, cells, notes
from bench.side import ROOT
from harness.errors import HarnessError
from harness.host import capacity as host
from harness.qemu import binary

BENCHMARKS: Final = (
    *(
        "start",
        "console",
        "boot",
        "failure",
        "output",
        "segment",
        "fork",
        "crowd",
        "cluster",
        "suite",
        "evidence",
    ),
)
"""The modules of this package, in the order they run; each has ``run(Context) -> list[Row]``."""

BY_NAME: Final = ("hangs", "calm", "clocks")
"""Those that take long or load the host, and run only where they are named."""


def describe_host() -> dict[str, Any]:
    """Return facts of the host, without its name."""
    room = host.capacity()
    try:
        qemu = binary.find("x86_64").version
    except HarnessError as error:
        qemu = str(error)
    return {
        "cpus": room.cpus,
        "memory": room.memory,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "qemu": qemu,
        "labgrid": peer.version() or None,
        "load_before": os.getloadavg()[0],
    }


def measure(names: Sequence[str], *, quick: bool, terminal: Terminal) -> Report:
    """Run benchmarks; if one fails, the others run all the same."""
    report = Report(describe_host(), quick)
    scratch = ROOT / ".harness" / "bench"
    scratch.mkdir(parents=True, exist_ok=True)
    for name in names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=scratch) as folder:

            def say(text: str, name: str = name, started: float = started) -> None:
                terminal.print(
                    f"[{time.monotonic() - started:6.1f} s] {name}: {text}", markup=False
                )

            context = Context(quick, Path(folder), say)
            try:
                report.rows += importlib.import_module(f"bench.{name}").run(context)
            except Exception as error:
                report.failed[name] = f"{type(error).__name__}: {error}"
                terminal.print(traceback.format_exc(), markup=False)
    report.host["load_after"] = os.getloadavg()[0]
    return report


LABELS: Final = ("measurement", "subject")
"""The headings of columns of text; the others hold numbers."""


def show(report: Report, terminal: Terminal) -> None:
    """Print the table and the notes."""
    table = Table(title=f"{report.host['cpus']:g} CPUs, TCG, QEMU {report.host['qemu']}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in LABELS else "right")
    styles = {Standing.OVER: "red", Standing.WITHIN: "green", Standing.MISSING: "dim"}
    for row in report.rows:
        table.add_row(*cells(row), style=styles.get(row.standing))
    terminal.print(table)
    for line in notes(report.rows):
        terminal.print(f"- {line}", markup=False, highlight=False)
    for name, error in report.failed.items():
        terminal.print(f"failed: {name}: {error}", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = (*BENCHMARKS, *BY_NAME)
    # Not choices=: argparse would refuse the empty list.
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="few samples, 100 MB instead of 1 GB")
    parser.add_argument(
        "--strict", action="store_true", help="exit with status 1 if a budget is missed"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown benchmark {unknown[0]!r} (choose {', '.join(known)})")
    # A file or a CI log has no edge that the table must fit.
    terminal = Terminal(width=None if sys.stdout.isatty() else 160)
    report = measure(options.names or BENCHMARKS, quick=options.quick, terminal=terminal)
    show(report, terminal)
    path = report.write(ROOT / ".harness" / "bench")
    over = ", ".join(sorted({row.measurement for row in report.over}))
    terminal.print(
        f"written: {path.relative_to(ROOT)}" + (f"; over budget: {over}" if over else "")
    )
    return report.status(strict=options.strict)


if __name__ == "__main__":
    sys.exit(main())
