"""Attach this terminal to the console of a machine of a running test; Ctrl-] leaves.

The log, the recording and the watchers of the console stay active, and the machine outlives you. While
the test goes on, it keeps its shell: what you type mixes with what it types. In a pause of
--pause-on-failure you get a prompt. One terminal at a time can be attached to a machine.
"""

from __future__ import annotations

import argparse
import sys

from harness.cli.options import say
from harness.errors import UsageError
from harness.live import client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_target(parser)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a machine."""
    parser.add_argument(
        "machine",
        metavar="[RUN/]MACHINE",
        help="as 'harness ps' lists them; or the process id of its QEMU",
    )


def main(options: argparse.Namespace) -> int:
    """Attach."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise UsageError("'harness attach' needs a terminal", hint="use 'harness ssh' in a script")
    target = client.target(options.machine, client.processes())
    say(f"console of {target.name}; Ctrl-] leaves")
    end = client.attach(target, sys.stdin.fileno(), sys.stdout.fileno())
    say({"closed": "the console has ended, or the test has gone on"}.get(end, "left"))
    return 0
