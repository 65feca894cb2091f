"""Start a machine and attach this terminal to its console; Ctrl-] leaves.

The machine boots the image, or goes on from a state:
  harness shell skiff                     boot the live medium
  harness shell skiff --state installed   a fork of the installed system, with a shell

--state takes live, installed and settled, which are built if this host does not have them, and the name
or the entry of any saved state ('harness states list'). The machine is yours alone and ends when you
leave; a saved state stays as it is. A command line for ssh is printed first. The evidence is kept below
.harness/shell.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any, Final

from harness import points
from harness.cli import states
from harness.cli.options import add_machine, lab_of, say, size
from harness.errors import UnknownNameError, UsageError
from harness.lab import Lab
from harness.machine import Machine
from harness.qemu import image_format
from harness.spec import Disk
from harness.ssh.key import KeyPair
from harness.states import Lease, State

EVIDENCE: Final = Path(".harness/shell")

SSH_PORT: Final = 22

_BOOT_ONLY: Final = {
    "cpus": "--cpus",
    "memory": "--memory",
    "disk": "--disk",
    "no_medium": "--no-medium",
}
"""Options that describe the hardware; that of a saved machine cannot change."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("image", metavar="IMAGE", help="NAME[/VARIANT][:VERSION]")
    parser.add_argument(
        "--state", default=None, metavar="NAME", help="start from a state instead of booting"
    )
    add_machine(parser)
    parser.add_argument(
        "--memory", type=size, default=None, metavar="SIZE", help="the RAM (default: the image's)"
    )
    parser.add_argument(
        "--cpus", type=int, default=None, help="the virtual CPUs (default: the image's)"
    )
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="SIZE|FILE",
        help="a further disk: a blank one of that size (8GiB), or an overlay of a file",
    )
    parser.add_argument(
        "--no-medium", action="store_true", help="leave out the image's live medium"
    )


def main(options: argparse.Namespace) -> int:
    """Start the machine and attach."""
    if not sys.stdin.isatty():
        raise UsageError(
            "'harness shell' needs a terminal", hint="run it without a pipe, or use 'harness lab'"
        )
    if options.state is not None:
        for name, option in _BOOT_ONLY.items():
            if getattr(options, name):
                raise UsageError(
                    f"{option} and --state exclude each other: a saved machine keeps its hardware"
                )
    with (
        contextlib.ExitStack() as leases,
        lab_of(options, options.image, evidence=EVIDENCE, keep=True) as lab,
    ):
        image = lab.image
        accel = lab.accelerator(image.arch)
        machine = _start(options, lab, leases)
        say(f"{image} under {accel.name} ({accel.reason})")
        if login := ssh_command(lab, machine):
            say(login)
        say("Ctrl-] leaves and ends the machine")
        machine.console.attach()
        say(f"evidence: {machine.evidence}")
    return 0


def ssh_command(lab: Lab, machine: Machine[Any]) -> str:
    """Return the command that logs in over SSH; empty if the machine has no way in.

    Args:
        lab: The lab; its folder gets the key.
        machine: The machine.
    """
    if SSH_PORT not in {port for nic in machine.spec.nics for port in nic.forward}:
        return ""
    host, port = machine.port(SSH_PORT)
    # A fork lets in the key of the run that saved it.
    saved = machine.origin
    key = lab.key if saved is None else KeyPair(saved.private_key, saved.public_key)
    private = key.write(lab.folder / f"{machine.name}-key")
    return f"ssh -i {shlex.quote(str(private))} -p {port} {machine.os.account.user}@{host}"


def _start(options: argparse.Namespace, lab: Lab, leases: contextlib.ExitStack) -> Machine[Any]:
    if options.state is None:
        return lab.boot(
            medium=not options.no_medium,
            disks=[_disk(number, text) for number, text in enumerate(options.disk)],
            cpus=options.cpus,
            memory=options.memory,
        )
    point = getattr(points, options.state, None)
    if isinstance(point, State):
        return lab.fork(point)
    return lab.fork(leases.enter_context(_saved(lab, options.state)).snapshot)


def _saved(lab: Lab, name: str) -> Lease:
    """Return the newest saved state of a name and of the lab's image, or that of an entry.

    Raises:
        UnknownNameError: There is no such state.
        UsageError: All of that name are of another image.
        StateError: The entry is damaged, or has been removed meanwhile.
    """
    try:
        entries = states.find(lab.states, name)
    except UnknownNameError as error:
        built = (name for name, value in vars(points).items() if isinstance(value, State))
        raise UnknownNameError("state", name, {*built, *error.names}) from None
    image = f"{lab.image.name}/{lab.image.variant}:{lab.image.version}"
    for entry in entries:
        manifest = entry.manifest
        if manifest is not None and manifest.inputs["image: name"] == image:
            return lab.states.lend(entry.id)
    raise UsageError(
        f"no saved state {name!r} is of {image}",
        hint=f"'harness states explain {name}' prints its image",
    )


def _disk(number: int, text: str) -> Disk:
    if Path(text).is_file():
        return Disk(f"disk{number}", base=Path(text), format=image_format.guess(Path(text)))
    if "/" in text:
        raise UsageError(
            f"--disk {text}: there is no such file", hint="name a file, or a size such as 8GiB"
        )
    return Disk(f"disk{number}", size=size(text))
