"""Joins records: the shards of a run, or several runs, as one report.

The result is the set of all runs, in the order of their beginnings. So merging is associative,
commutative and idempotent: the order of the shards does not matter, and a shard that is merged twice
counts once. A run that is given with and without its evidence counts once, with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from harness.evidence.report.record import FORMAT, Record


def merge(records: Iterable[Record]) -> Record:
    """Return one record of the runs of all records."""
    runs: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        for run in record["runs"]:
            key = _key(run)
            runs[key] = max(runs.get(key, run), run, key=_weight)
    return {"format": FORMAT, "runs": [runs[key] for key in sorted(runs)]}


def _key(run: dict[str, Any]) -> tuple[str, ...]:
    """Return what tells runs apart; process numbers, which names have, repeat on other hosts."""
    facts = ("began", "name", "command", "image", "seconds", "host")
    return tuple(json.dumps(run.get(name), sort_keys=True) for name in facts)


def _weight(run: dict[str, Any]) -> tuple[int, str]:
    """Return an order of records of the same run: the one that has more evidence is the greatest."""
    known = sum(test.get("detail") is not None for test in run["tests"])
    return known, json.dumps(run, sort_keys=True)
