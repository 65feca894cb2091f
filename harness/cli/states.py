"""List, explain and remove saved states.

list     what is saved on this host: size, last use, what it builds on
explain  what a state was made of, or which input makes two of them differ
rm       remove states by name or entry; never what is in use
gc       remove what was interrupted or is damaged, then what is over the budget
"""

from __future__ import annotations

import argparse
import time

from harness import paths
from harness.errors import UnknownNameError, UsageError
from harness.spec import format_size, parse_size
from harness.state.cache import BUDGET, Entry, StateCache
from harness.state.graph import explain


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("list", help="what is saved").set_defaults(verb_handler=_list)
    told = verbs.add_parser("explain", help="what a state was made of, and what changed")
    told.add_argument("state", metavar="STATE", help="a name, or an entry of 'list'")
    told.add_argument("other", nargs="?", metavar="ENTRY", help="the entry to compare it with")
    told.set_defaults(verb_handler=_explain)
    remove = verbs.add_parser("rm", help="remove states")
    remove.add_argument("state", nargs="+", metavar="STATE", help="a name, or an entry of 'list'")
    remove.set_defaults(verb_handler=_rm)
    gc = verbs.add_parser("gc", help="remove what is not needed")
    gc.add_argument(
        "--budget",
        type=_size,
        default=BUDGET,
        metavar="SIZE",
        help=f"what all states may take on disk (default: {format_size(BUDGET)})",
    )
    gc.add_argument("--all", action="store_true", help="remove all that is not in use")
    gc.set_defaults(verb_handler=_gc)


def main(options: argparse.Namespace) -> int:
    """Run the verb."""
    budget = getattr(options, "budget", BUDGET)
    cache = StateCache(paths.cache_dir() / "states", budget=budget)
    return int(options.verb_handler(options, cache))


def _list(options: argparse.Namespace, cache: StateCache) -> int:
    del options
    entries = cache.list()
    print(f"{'ENTRY':44}{'STATUS':12}{'KIND':6}{'SIZE':>10}  {'USED':18}PARENT")
    for entry in entries:
        record = entry.record
        kind = "?" if record is None else "cold" if record.cold else "live"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        parent = record.parent if record is not None else ""
        size = format_size(entry.bytes)
        print(f"{entry.id:44}{entry.status:12}{kind:6}{size:>10}  {used:18}{parent}")
        if entry.why:
            print(f"  {entry.why}")
    print(f"{len(entries)} states, {format_size(sum(entry.bytes for entry in entries))} in all")
    return 0


def _explain(options: argparse.Namespace, cache: StateCache) -> int:
    found = _find(cache, options.state)
    if options.other is not None:
        other = _find(cache, options.other)[0]
        return _compare(found[0], other)
    newest, *others = found
    if newest.record is None:
        raise UsageError(f"{newest.id} is {newest.status}: {newest.why}")
    print(f"{newest.id}")
    if newest.record.cold:
        print(f"  disks only: {newest.record.cold}")
    for name, value in sorted(newest.record.inputs.items()):
        print(f"  {name}: {value}")
    for other in others:
        _compare(newest, other)
    return 0


def _compare(now: Entry, before: Entry) -> int:
    if now.record is None or before.record is None:
        raise UsageError(f"{now.id} is {now.status}, {before.id} is {before.status}")
    print(f"{now.id} against {before.id}")
    for line in explain(now.record.inputs, before.record.inputs) or ["nothing differs"]:
        print(f"  {line}")
    return 0


def _find(cache: StateCache, name: str) -> list[Entry]:
    """Return the entries of a name, the one made last first, or the one entry that is named."""
    entries = cache.list()
    of_name = [each for each in entries if each.record is not None and each.record.name == name]
    found = [each for each in entries if each.id == name] or sorted(
        of_name, key=lambda each: each.record.created if each.record else 0.0, reverse=True
    )
    if not found:
        names = {each.record.name for each in entries if each.record is not None}
        raise UnknownNameError("state", name, names | {each.id for each in entries})
    return found


def _rm(options: argparse.Namespace, cache: StateCache) -> int:
    wanted = {each.id: each for name in options.state for each in _find(cache, name)}
    kept = 0
    for entry in wanted.values():
        if cache.remove(entry.id):
            print(f"removed {entry.id} ({format_size(entry.bytes)})")
        else:
            kept += 1
            print(f"kept {entry.id}: in use")
    return 1 if kept else 0


def _gc(options: argparse.Namespace, cache: StateCache) -> int:
    freed = cache.gc(everything=options.all, progress=print)
    print(f"{format_size(freed)} given back")
    return 0


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.what) from error
