"""Resume the machines of a failed test, out of its bundle, as they were when it failed.

All machines of the bundle run on. This terminal is attached to the console of one of them; Ctrl-]
leaves and ends all. A command line for ssh is printed first. --python opens the prompt of 'harness lab'
instead, with the same words as the test, and two more names:
  machine    the machine (the first one, or that of --machine)
  machines   all of them, by name

Without a terminal, the command reads a script from standard input, as 'harness lab' does.

The guest's clock is set to now, and its random pool reseeded, where a shell or SSH answers; processes,
files in memory and the uptime are those of the moment of failure. A machine that the bundle has without
its RAM boots from its disks.

The files of its image come from this host's cache, by their digests, and are built or fetched first if
they are not there. A machine resumes under the accelerator that it ran under, by the same or a newer
QEMU. The evidence is kept below .harness/resurrect.

Load bundles of people whom you trust: QEMU reads the saved machine with your rights.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from harness.bundles import resume as resuming
from harness.cli.lab import interact, namespace
from harness.cli.options import add_images, image_folders, say
from harness.cli.shell import ssh_command
from harness.errors import BundleError, UnknownNameError
from harness.evidence.bundle import Bundle, SavedMachine
from harness.lab import Lab
from harness.machine import Machine

EVIDENCE: Final = Path(".harness/resurrect")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the file of a failed test")
    parser.add_argument(
        "--python", action="store_true", help="open a Python prompt instead of the console"
    )
    parser.add_argument(
        "--machine",
        default=None,
        metavar="NAME",
        help="the machine to attach to (default: the first)",
    )
    add_images(parser)


def main(options: argparse.Namespace) -> int:
    """Resume the machines and attach."""
    with Bundle(options.bundle) as bundle:
        test = bundle.manifest.test
        machines = _machines(bundle)
        chosen = _chosen(machines, options.machine)
        accels = {resuming.snapshot_of(each, Path("/")).accel for each in machines}
        if len(accels) > 1:
            raise BundleError("machines of several accelerators cannot be resumed together")
        say(f"{test.id}: {test.verdict}: {test.reason}")
        with Lab(
            machines[0].image,
            arch=machines[0].arch,
            images=image_folders(options),
            accel=accels.pop(),
            evidence=EVIDENCE,
            keep=True,
        ) as lab:
            for machine in machines:
                resuming.check(bundle, machine, lab.accelerator(machine.arch).name)
            files = Path(tempfile.mkdtemp(prefix="resurrect-", dir=lab.folder))
            try:
                running = resuming.resume(bundle, machines, files / "disks", lab)
                return _use(options, lab, running, chosen.name)
            finally:
                lab.close()
                shutil.rmtree(files, ignore_errors=True)


def _machines(bundle: Bundle) -> Sequence[SavedMachine]:
    manifest = bundle.manifest
    if not manifest.machines:
        reasons = "\n".join(f"{each.what}: {each.why}" for each in manifest.withheld)
        raise BundleError(
            f"{bundle.path} carries no machine",
            evidence=reasons or "its test had none",
            hint=f"harness repro {bundle.path} runs the test again",
        )
    for each in manifest.withheld:
        say(f"without {each.what}: {each.why}")
    return manifest.machines


def _chosen(machines: Sequence[SavedMachine], name: str | None) -> SavedMachine:
    if name is None:
        return machines[0]
    machine = next((each for each in machines if each.name == name), None)
    if machine is None:
        raise UnknownNameError("machine", name, [each.name for each in machines])
    return machine


def _use(
    options: argparse.Namespace, lab: Lab, running: Sequence[Machine[Any]], chosen: str
) -> int:
    machines = {machine.name: machine for machine in running}
    machine = machines[chosen]
    for each in running:
        if login := ssh_command(lab, each):
            say(f"{each.name}: {login}")
        if each.origin is not None and each.origin.cold:
            say(f"{each.name} has booted from its disks: {each.origin.cold}")
    if sys.stdin.isatty() and not options.python:
        others = [name for name in machines if name != chosen]
        say(f"console of {chosen}; Ctrl-] leaves and ends the machines")
        if others:
            say(f"also running: {', '.join(others)} (--machine NAME)")
        machine.console.attach()
        return 0
    names = {**namespace(lab), "machine": machine, "machines": machines}
    text = f"machine is {chosen}; machines: {', '.join(machines)}. Ctrl-D leaves and ends all."
    return interact(names, f"{text}\n  attach(machine)  # Ctrl-] comes back")
