"""List, build, locate, verify and remove images.

list    all images of the catalogue, and the status of each in the cache
build   build or fetch images, once per host; print the folder of each
path    print the path of an artifact; build the image first if need be
gc      remove entries that the catalogue does not name; never one that is in use
verify  compare each entry of the cache with its checksums

JSON:
  list    {"images": [{"name", "variant", "version", "arch", "status", "bytes", "path", "summary"}],
           "others": [{"id", "status", "bytes", "path"}]}   others: entries outside the catalogue
  build   {"images": [{"name", "variant", "version", "arch", "path", "artifacts": {NAME: PATH}}]}
  path    the same, for one image; "artifacts" holds the artifact that was named
  gc      {"dry_run", "removed": [{"id", "status", "bytes", "path"}], "in_use": [the same],
           "failed": [MESSAGE], "bytes"}
  verify  {"ok", "damaged": {ID: [FAULT]}, "seconds"}
"status" is null for an image that is not in the cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cache import Entry, Status
from harness.catalog import Selection
from harness.cli.options import add_images, add_json, lab_of, print_json, say
from harness.errors import UnknownNameError, UsageError
from harness.lab import Lab
from harness.spec import format_size

REFERENCE = "NAME[/VARIANT][:VERSION]"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    add_images(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, summary: str, handler: Callable[[argparse.Namespace, Lab], int]
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary)
        add_json(sub)
        sub.set_defaults(verb_handler=handler)
        return sub

    verb("list", "list the images of the catalogue", _list)
    build = verb("build", "build or fetch images", _build)
    build.add_argument("image", nargs="*", metavar="IMAGE", help=REFERENCE)
    build.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="build what the jobs of a plan may start: each variant and version of their images",
    )
    build.add_argument("--arch", default=None, help="the architecture (default: the image's first)")
    path = verb("path", "print the path of an artifact", _path)
    path.add_argument("image", metavar="IMAGE", help=REFERENCE)
    path.add_argument("artifact", nargs="?", help="its name in image.yaml (default: all of them)")
    path.add_argument("--arch", default=None, help="the architecture (default: the image's first)")
    gc = verb("gc", "remove entries that the catalogue does not name", _gc)
    gc.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    gc.add_argument(
        "--max-age",
        type=_days,
        default=None,
        metavar="DAYS",
        help="remove entries that were last used so many days ago, in the catalogue or not",
    )
    gc.add_argument(
        "--all", action="store_true", help="remove all entries, and the caches of builds"
    )
    verify = verb("verify", "compare the cache with its checksums", _verify)
    verify.add_argument("--remove", action="store_true", help="remove damaged entries")


def main(options: argparse.Namespace) -> int:
    """Run the verb."""
    with lab_of(argparse.Namespace(images=options.images)) as lab:
        return int(options.verb_handler(options, lab))


def _described(selection: Selection) -> dict[str, Any]:
    return {
        "name": selection.name,
        "variant": selection.variant,
        "version": selection.version,
        "arch": selection.arch,
    }


def _entry(entry: Entry[Any]) -> dict[str, Any]:
    return {
        "id": entry.id,
        "status": entry.status,
        "bytes": entry.bytes,
        "path": str(entry.path),
    }


def _list(options: argparse.Namespace, lab: Lab) -> int:
    entries = {entry.path: entry for entry in lab.store.list()}
    images = []
    for selection in lab.catalog.selections():
        path = lab.store.where(selection)
        entry = entries.pop(path, None)
        images.append(
            {
                **_described(selection),
                "status": None if entry is None else entry.status,
                "bytes": 0 if entry is None else entry.bytes,
                "path": str(path),
                "summary": selection.summary,
                "unpinned": list(selection.unpinned),
            }
        )
    if options.json:
        print_json({"images": images, "others": [_entry(entry) for entry in entries.values()]})
        return 0
    names = [f"{image['name']}/{image['variant']}:{image['version']}" for image in images]
    width = max(map(len, ["IMAGE", *names])) + 2
    print(f"{'IMAGE':{width}}{'ARCH':10}{'CACHE':12}{'SIZE':>10}  SUMMARY")
    for name, image in zip(names, images, strict=True):
        size = format_size(image["bytes"]) if image["status"] else ""
        status = image["status"] or ("no digest" if image["unpinned"] else "-")
        print(f"{name:{width}}{image['arch']:10}{status:12}{size:>10}  {image['summary']}")
    if entries:
        total = format_size(sum(entry.bytes for entry in entries.values()))
        # They may be another project's: projects share the cache.
        print(f"and {len(entries)} entries ({total}) that this catalogue does not name")
        print("  'harness images gc' removes them")
    return 0


def _build(options: argparse.Namespace, lab: Lab) -> int:
    # All names are checked before the first build begins.
    selections = [lab.select(reference, options.arch) for reference in options.image]
    if options.plan is not None:
        selections += _planned(options.plan, lab)
    elif not selections:
        raise UsageError("no image to build", hint=f"name one, {REFERENCE}, or give --plan FILE")
    images = []
    for selection in selections:
        with (
            lab.progress.doing("images", f"building {selection}"),
            lab.artifacts(selection) as files,
        ):
            folder = files.folder
            images.append(
                {**_described(selection), "path": str(folder), "artifacts": _paths(files.items())}
            )
        if not options.json:
            print(folder)
    if options.json:
        print_json({"images": images})
    return 0


def _planned(path: Path, lab: Lab) -> list[Selection]:
    """Return what the jobs of a plan may start: their tests upgrade and break images, too."""
    from harness.gate import plan

    jobs = {(job.image, arch) for job in plan.read(path).jobs for arch in (job.arch, *job.also)}
    names = {(image.partition("/")[0], arch) for image, arch in jobs}
    for name, arch in sorted(names):
        lab.select(name, arch)
    return [
        selection
        for selection in lab.catalog.selections()
        if (selection.name, selection.arch) in names
    ]


def _path(options: argparse.Namespace, lab: Lab) -> int:
    selection = lab.select(options.image, options.arch)
    if options.artifact and options.artifact not in selection.artifacts:
        raise UnknownNameError("artifact", options.artifact, selection.artifacts)
    with lab.artifacts(selection) as files:
        artifacts = _paths(files.items())
        folder = files.folder
    if options.artifact:
        artifacts = {options.artifact: artifacts[options.artifact]}
    if options.json:
        print_json({**_described(selection), "path": str(folder), "artifacts": artifacts})
    else:
        print("\n".join(artifacts.values()))
    return 0


def _gc(options: argparse.Namespace, lab: Lab) -> int:
    if options.all and options.max_age is not None:
        raise UsageError("--all and --max-age exclude each other")
    keep = () if options.max_age is not None else lab.catalog.selections()
    collected = lab.store.gc(
        keep=keep, max_age=options.max_age, everything=options.all, dry_run=options.dry_run
    )
    if options.json:
        print_json(
            {
                "dry_run": options.dry_run,
                "removed": [_entry(entry) for entry in collected.removed],
                "in_use": [_entry(entry) for entry in collected.in_use],
                "failed": list(collected.failed),
                "bytes": collected.bytes,
            }
        )
    else:
        verb = "would remove" if options.dry_run else "removed"
        for entry in collected.removed:
            print(f"{verb} {entry.id} ({format_size(entry.bytes)}, {entry.status})")
        for entry in collected.in_use:
            print(f"kept {entry.id}: in use")
        total = format_size(collected.bytes)
        print(f"{verb} {len(collected.removed)} entries, {total} in all")
    for line in collected.failed:
        say(line)
    return 1 if collected.failed else 0


def _verify(options: argparse.Namespace, lab: Lab) -> int:
    started = time.monotonic()
    damaged = lab.store.verify(remove=options.remove, say=say)
    seconds = time.monotonic() - started
    if options.json:
        report = {entry: list(faults) for entry, faults in damaged.items()}
        print_json({"ok": not damaged, "damaged": report, "seconds": round(seconds, 3)})
    else:
        for entry, faults in damaged.items():
            print(f"{entry}: {Status.DAMAGED}: {'; '.join(faults)}")
        print(f"{len(damaged)} damaged, verified in {seconds:.1f} s")
    return 1 if damaged else 0


def _paths(items: Any) -> dict[str, str]:
    return {name: str(Path(path)) for name, path in items}


def _days(text: str) -> float:
    """Return the seconds of a number of days, for argparse."""
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days of at least 0")
    return days * 86400
