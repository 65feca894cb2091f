"""List, explain and remove saved states.

list     the states saved on this host: size, last use, parent
explain  the inputs of a state, or the inputs in which two states differ
rm       remove states by name or entry; never one that is in use
gc       remove interrupted and damaged entries, then the oldest ones over the budget

JSON:
  list     {"states": [STATE], "bytes"}
           STATE: {"id", "name", "status", "kind", "machines", "bytes", "used", "parent", "why",
           "path"}
           "kind" is live, cold (disks only) or null; "used" is in seconds of the epoch; "why" says
           why a state is damaged
  explain  {"state": STATE, "cold": WHY, "inputs": {NAME: VALUE},
            "others": [{"state": STATE, "differences": [LINE]}]}
  rm       {"removed": [STATE], "in_use": [STATE]}
  gc       {"removed": [STATE], "bytes"}
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.cache import Entry
from harness.cli.options import add_json, print_json, say, size
from harness.errors import UnknownNameError, UsageError
from harness.lab import Lab
from harness.spec import format_size
from harness.states import StateCache
from harness.states.cache import BUDGET, StateManifest
from harness.states.graph import explain


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, summary: str, handler: Callable[[argparse.Namespace, StateCache], int]
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary)
        add_json(sub)
        sub.set_defaults(verb_handler=handler)
        return sub

    verb("list", "list the saved states", _list)
    explain_ = verb("explain", "print the inputs of a state, or the differences of two", _explain)
    explain_.add_argument("state", metavar="STATE", help="a name, or an entry of 'list'")
    explain_.add_argument(
        "other", nargs="?", metavar="ENTRY", help="the state or entry to compare it with"
    )
    remove = verb("rm", "remove states", _rm)
    remove.add_argument("state", nargs="+", metavar="STATE", help="a name, or an entry of 'list'")
    gc = verb("gc", "remove interrupted, damaged and surplus states", _gc)
    gc.add_argument(
        "--budget",
        type=size,
        default=BUDGET,
        metavar="SIZE",
        help=f"the bytes that all states may take on disk (default: {format_size(BUDGET)})",
    )
    gc.add_argument("--all", action="store_true", help="remove all states that are not in use")


def main(options: argparse.Namespace) -> int:
    """Run the verb."""
    budget = getattr(options, "budget", BUDGET)
    with Lab(state_budget=budget) as lab:
        return int(options.verb_handler(options, lab.states))


def find(cache: StateCache, name: str) -> Sequence[Entry[StateManifest]]:
    """Return the entries of a state's name, the newest first; or the entry that ``name`` is.

    Raises:
        UnknownNameError: There is neither.
    """
    entries = cache.list()
    matches = [entry for entry in entries if entry.id == name] or sorted(
        (entry for entry in entries if entry.manifest is not None and entry.manifest.name == name),
        key=lambda entry: entry.manifest.created if entry.manifest else 0.0,
        reverse=True,
    )
    if not matches:
        names = {entry.manifest.name for entry in entries if entry.manifest is not None}
        raise UnknownNameError("state", name, names | {entry.id for entry in entries})
    return matches


def _described(entry: Entry[StateManifest]) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "id": entry.id,
        "name": None if manifest is None else manifest.name,
        "status": str(entry.status),
        "kind": None if manifest is None else "cold" if manifest.cold else "live",
        "machines": None if manifest is None else len(manifest.machines) or 1,
        "bytes": entry.bytes,
        "used": entry.used,
        "parent": manifest.parent if manifest is not None else "",
        "why": entry.why,
        "path": str(entry.path),
    }


def _list(options: argparse.Namespace, cache: StateCache) -> int:
    entries = cache.list()
    total = sum(entry.bytes for entry in entries)
    if options.json:
        print_json({"states": [_described(entry) for entry in entries], "bytes": total})
        return 0
    print(f"{'ENTRY':44}{'STATUS':12}{'KIND':6}{'MACHINES':>8}{'SIZE':>11}  {'USED':18}PARENT")
    for entry in entries:
        state = _described(entry)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(
            f"{entry.id:44}{state['status']:12}{state['kind'] or '?':6}"
            f"{state['machines'] or '?':>8}{format_size(entry.bytes):>11}  {used:18}{state['parent']}"
        )
        if entry.why:
            print(f"  {entry.why}")
    print(f"{len(entries)} states, {format_size(total)} in all")
    return 0


def _explain(options: argparse.Namespace, cache: StateCache) -> int:
    newest, *others = find(cache, options.state)
    if options.other is not None:
        others = [find(cache, options.other)[0]]
    manifest = newest.manifest
    if manifest is None:
        raise UsageError(
            f"{newest.id} is {newest.status}: {newest.why or 'its inputs are unknown'}"
        )
    compared = [(other, _differences(newest, other)) for other in others]
    if options.json:
        print_json(
            {
                "state": _described(newest),
                "cold": manifest.cold,
                "inputs": dict(manifest.inputs),
                "others": [
                    {"state": _described(other), "differences": lines} for other, lines in compared
                ],
            }
        )
        return 0
    if options.other is None:
        print(newest.id)
        if manifest.cold:
            print(f"  disks only: {manifest.cold}")
        if manifest.machines:
            print(f"  machines: {', '.join(manifest.machines)}")
        for name, value in sorted(manifest.inputs.items()):
            print(f"  {name}: {value}")
    for other, lines in compared:
        print(f"{newest.id} against {other.id}")
        for line in lines or ["nothing differs"]:
            print(f"  {line}")
    return 0


def _differences(now: Entry[StateManifest], before: Entry[StateManifest]) -> list[str]:
    """Return the inputs in which two states differ, a line for each.

    Raises:
        UsageError: The inputs of one are unknown: it is being built, or damaged.
    """
    if now.manifest is None or before.manifest is None:
        raise UsageError(f"{now.id} is {now.status}, {before.id} is {before.status}")
    return list(explain(now.manifest.inputs, before.manifest.inputs))


def _rm(options: argparse.Namespace, cache: StateCache) -> int:
    entries = {entry.id: entry for name in options.state for entry in find(cache, name)}
    removed = [entry for entry in entries.values() if cache.remove(entry.id)]
    in_use = [entry for entry in entries.values() if entry not in removed]
    if options.json:
        print_json(
            {
                "removed": [_described(entry) for entry in removed],
                "in_use": [_described(entry) for entry in in_use],
            }
        )
    else:
        for entry in removed:
            print(f"removed {entry.id} ({format_size(entry.bytes)})")
        for entry in in_use:
            print(f"kept {entry.id}: in use")
    return 1 if in_use else 0


def _gc(options: argparse.Namespace, cache: StateCache) -> int:
    before = cache.list() if options.json else []
    freed = cache.gc(everything=options.all, say=say if options.json else print)
    if options.json:
        left = {entry.path for entry in cache.list()}
        removed = [_described(entry) for entry in before if entry.path not in left]
        print_json({"removed": removed, "bytes": freed})
    else:
        print(f"{format_size(freed)} freed")
    return 0
