"""List known failures: their age, when each was last seen, and since how many runs it was not.

list   all entries of the project's known.yaml (the default)
check  the same; exits with 1 if the file is wrong or an entry has expired

JSON:
  {"file", "ok", "runs", "entries": [ENTRY]}
  ENTRY: {"where", "key", "test", "pattern", "evidence", "image", "versions", "arch", "tracker", "owner",
  "added", "expires", "age", "expired", "occurred", "last_seen", "without", "unseen"}
  "age" is in days; "occurred" and "without" are numbers of runs; "unseen" says that "without" has
  reached --last
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.cli.options import add_json, add_runs, earlier_runs, print_json
from harness.errors import CatalogError, UsageError
from harness.known import KnownFailures, load
from harness.known.history import Standing, runs, standings
from harness.paths import KNOWN


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb and the options."""
    parser.add_argument(
        "verb", nargs="?", choices=("list", "check"), default="list", metavar="VERB"
    )
    parser.add_argument(
        "--known",
        type=Path,
        default=Path(KNOWN),
        metavar="FILE",
        help="the known failures (default: %(default)s)",
    )
    add_runs(parser, "a folder of runs or of one run, or a history")
    parser.add_argument(
        "--last",
        type=int,
        default=10,
        metavar="N",
        help="report an entry that did not occur in the last N runs in which it could have"
        " (default: %(default)s)",
    )
    add_json(parser)


def main(options: argparse.Namespace) -> int:
    """List or check."""
    if options.last < 1:
        raise UsageError(f"--last {options.last}: at least 1")
    if not options.known.exists():
        raise UsageError(
            f"there is no {options.known}",
            hint="docs/how-to/known-failures.md, or name it by --known",
        )
    checks = options.verb == "check"
    try:
        known = load(options.known)
    except CatalogError as error:
        if not checks:
            raise
        print(f"harness: error: {error}", file=sys.stderr)
        return 1
    history = runs(earlier_runs(options))
    described = [
        _described(each, known, options.last) for each in standings(known.entries, history)
    ]
    ok = not known.expired
    if options.json:
        content = {"file": str(known.path), "ok": ok, "runs": len(history), "entries": described}
        print_json(content)
    else:
        _print(described, known, len(history))
    return 0 if ok or not checks else 1


def _described(standing: Standing, known: KnownFailures, last: int) -> dict[str, Any]:
    entry = standing.entry
    return {
        "where": entry.where,
        "key": entry.key,
        **entry.model_dump(mode="json", exclude={"note"}),
        "age": (known.today - entry.added).days,
        "expired": entry.has_expired(known.today),
        "occurred": standing.occurred,
        "last_seen": standing.last_seen,
        "without": standing.without,
        "unseen": standing.without >= last,
    }


def _print(entries: list[dict[str, Any]], known: KnownFailures, count: int) -> None:
    for entry in entries:
        scope = " ".join(entry[key] for key in ("image", "versions", "arch") if entry[key])
        print(f"{entry['where']}: {entry['test']}{f' on {scope}' if scope else ''}")
        print(f"  {entry['pattern']}")
        state = "EXPIRED on" if entry["expired"] else "expires on"
        print(f"  {entry['tracker']}, {entry['owner']}")
        print(f"  {entry['age']} days old, {state} {entry['expires']}")
        seen = f"last seen {entry['last_seen']}" if entry["last_seen"] else "never seen"
        print(
            f"  {seen}; occurred in {entry['occurred']} runs; {entry['without']} runs without it since"
        )
        if entry["unseen"]:
            print("  UNSEEN: is it still needed?")
    total, expired = len(entries), len(known.expired)
    unseen = sum(entry["unseen"] for entry in entries)
    print(f"{total} known failures, {expired} expired, {unseen} unseen; {count} runs looked at")
