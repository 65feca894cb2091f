"""Boot an image and attach this terminal to its console; Ctrl-] leaves.

The machine is a fresh one and ends when you leave; its evidence is kept below .harness/shell.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from harness import paths, profiles
from harness.catalog import load
from harness.errors import UsageError
from harness.evidence.timeline import Step, Timeline
from harness.keys import KeyPair
from harness.machine import Machine
from harness.qemu import accel, binary
from harness.spec import Disk, parse_size
from harness.store import Store
from harness.turns import Turns


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("image", metavar="IMAGE", help="NAME[/VARIANT][:VERSION]")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--accel", default="auto", choices=("auto", "kvm", "tcg"))
    parser.add_argument("--memory", type=parse_size, default=None, metavar="SIZE")
    parser.add_argument("--cpus", type=int, default=None)
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="SIZE|FILE",
        help="a further disk: a blank one of that size (8GiB), or an overlay of a file",
    )
    parser.add_argument("--no-medium", action="store_true", help="without the image's live medium")
    parser.add_argument("--images", action="append", default=[], metavar="DIR")


def main(options: argparse.Namespace) -> int:
    """Boot and attach."""
    if not sys.stdin.isatty():
        raise UsageError("'harness shell' needs a terminal", hint="run it without a pipe")
    catalog = load(*paths.catalog_dirs(*options.images), known_profiles=profiles.names())
    selection = catalog.resolve(options.image, options.arch)
    profile = profiles.of(selection.image)
    found = accel.probe(
        options.accel,
        selection.arch,
        qemu=binary.find(selection.arch).path,
        cache_dir=paths.cache_dir(),
    )
    turns = Turns(paths.cache_dir(), lambda _: found)
    files = Store(paths.cache_dir()).artifacts(selection, progress=_say).files
    key = KeyPair.generate()
    spec = profile.spec(
        selection,
        files,
        name=selection.image.name,
        medium=not options.no_medium,
        disks=[_disk(number, text) for number, text in enumerate(options.disk)],
        credentials=profile.credentials(key.public),
        cpus=options.cpus,
        memory=options.memory,
    )
    evidence = Path(".harness/shell", time.strftime("%Y%m%d-%H%M%S")).absolute()
    machine = Machine(
        spec,
        accel=turns.accel,
        key=key,
        evidence=evidence,
        timeline=Timeline(listener=_waits),
        admit=turns.take,
    )
    machine.os = profile(machine, selection)
    with machine:
        private = key.write(evidence / "key")
        _say(f"{selection} under {found.name} ({found.reason})")
        if 22 in {port for nic in spec.nics for port in nic.forward}:
            host, port = machine.port(22)
            _say(f"ssh -i {private} -p {port} {machine.os.account.user}@{host}")
        _say("Ctrl-] leaves and ends the machine")
        machine.console.attach()
    _say(f"evidence: {evidence}")
    return 0


def _disk(number: int, text: str) -> Disk:
    if Path(text).is_file():
        format_ = "qcow2" if text.endswith(".qcow2") else "raw"
        return Disk(f"disk{number}", base=Path(text), format=format_)
    if "/" in text:
        raise UsageError(f"there is no file {text} to make a disk of", hint="a file, or a size")
    return Disk(f"disk{number}", size=parse_size(text))


def _waits(step: Step) -> None:
    if step.seconds is None and step.name.startswith("waiting for "):
        _say(step.name)


def _say(line: str) -> None:
    print(f"harness: {line}", file=sys.stderr)
