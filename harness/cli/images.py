"""List, build, locate and remove images.

list    what the catalogue has, and what of it is in the cache
build   make or fetch images, once per host; prints the folder of each
path    print the path of an artifact, building it first if needed
gc      remove what is not needed; never what is in use
verify  compare everything in the cache with its digests
"""

from __future__ import annotations

import argparse
import sys
import time

from harness import paths, profiles
from harness.catalog import Catalog, load
from harness.errors import UnknownNameError, UsageError
from harness.progress import Progress
from harness.spec import format_size
from harness.store import State, Store


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    parser.add_argument(
        "--images", action="append", default=[], metavar="DIR", help="a further folder of images"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("list", help="what there is").set_defaults(verb_handler=_list)
    build = verbs.add_parser("build", help="make or fetch images")
    build.add_argument("image", nargs="+", metavar="IMAGE", help="NAME[/VARIANT][:VERSION]")
    build.add_argument("--arch", default=None)
    build.set_defaults(verb_handler=_build)
    path = verbs.add_parser("path", help="print the path of an artifact")
    path.add_argument("image", metavar="IMAGE")
    path.add_argument("artifact", nargs="?", help="its name in image.yaml; all of them by default")
    path.add_argument("--arch", default=None)
    path.set_defaults(verb_handler=_path)
    gc = verbs.add_parser("gc", help="remove what is not needed")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    gc.add_argument(
        "--max-age",
        type=_days,
        default=None,
        metavar="DAYS",
        help="also remove what the catalogue knows but nobody has used for so long",
    )
    gc.add_argument("--all", action="store_true", help="remove everything, caches of builds too")
    gc.set_defaults(verb_handler=_gc)
    verify = verbs.add_parser("verify", help="compare the cache with its digests")
    verify.add_argument("--remove", action="store_true", help="remove what is damaged")
    verify.set_defaults(verb_handler=_verify)


def main(options: argparse.Namespace) -> int:
    """Run the verb."""
    catalog = load(*paths.catalog_dirs(*options.images), known_profiles=profiles.names())
    return int(options.verb_handler(options, catalog, Store(paths.cache_dir())))


def _list(options: argparse.Namespace, catalog: Catalog, store: Store) -> int:
    entries = {entry.path: entry for entry in store.list()}
    known = set()
    print(f"{'IMAGE':26}{'ARCH':10}{'CACHE':12}{'SIZE':>10}  SUMMARY")
    for selection in catalog.selections():
        where = store.where(selection)
        known.add(where)
        entry = entries.get(where)
        state = entry.state.value if entry is not None else "-"
        size = format_size(entry.bytes) if entry is not None else ""
        name = f"{selection.image.name}/{selection.variant}:{selection.version}"
        print(f"{name:26}{selection.arch:10}{state:12}{size:>10}  {selection.image.summary}")
    others = [entry for path, entry in entries.items() if path not in known]
    if others:
        total = format_size(sum(entry.bytes for entry in others))
        # Other projects may share the cache.
        folders = ", ".join(map(str, paths.catalog_dirs(*options.images))) or "no folder"
        print(
            f"and {len(others)} ({total}) that no image.yaml in {folders} names: harness images gc"
        )
    return 0


def _build(options: argparse.Namespace, catalog: Catalog, store: Store) -> int:
    selections = [catalog.resolve(reference, options.arch) for reference in options.image]
    progress = Progress(sys.stderr)
    try:
        for selection in selections:
            with (
                progress.doing("images", f"building {selection}"),
                store.artifacts(selection, progress=progress.say) as artifacts,
            ):
                print(artifacts.directory)
    finally:
        progress.close()
    return 0


def _path(options: argparse.Namespace, catalog: Catalog, store: Store) -> int:
    selection = catalog.resolve(options.image, options.arch)
    if options.artifact and options.artifact not in selection.entry.artifacts:
        raise UnknownNameError("artifact", options.artifact, selection.entry.artifacts)
    with store.artifacts(selection, progress=_say) as artifacts:
        for name, path in artifacts.items():
            if options.artifact in (None, name):
                print(path)
    return 0


def _gc(options: argparse.Namespace, catalog: Catalog, store: Store) -> int:
    if options.all and options.max_age is not None:
        raise UsageError("--all and --max-age exclude each other")
    keep = () if options.max_age is not None else catalog.selections()
    done = store.gc(
        keep=keep, max_age=options.max_age, everything=options.all, dry_run=options.dry_run
    )
    verb = "would remove" if options.dry_run else "removed"
    for entry in done.removed:
        print(f"{verb} {entry.id} ({format_size(entry.bytes)}, {entry.state.value})")
    for entry in done.in_use:
        print(f"kept {entry.id}: in use")
    print(f"{verb} {len(done.removed)} entries, {format_size(done.bytes)} in all")
    for line in done.failed:
        print(f"harness: {line}", file=sys.stderr)
    return 1 if done.failed else 0


def _verify(options: argparse.Namespace, catalog: Catalog, store: Store) -> int:
    del catalog
    started = time.monotonic()
    damaged = store.verify(remove=options.remove, progress=_say)
    for name, faults in damaged.items():
        print(f"{name}: {State.DAMAGED.value}: {'; '.join(faults)}")
    print(f"{len(damaged)} damaged, verified in {time.monotonic() - started:.1f} s")
    return 1 if damaged else 0


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise argparse.ArgumentTypeError(f"a number of days, not {text!r}")
    return days * 86400


def _say(line: str) -> None:
    print(f"harness: {line}", file=sys.stderr)
