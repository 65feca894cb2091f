"""Log in to a machine of a running test over SSH, or run a command there.

It runs the ssh program of this host with the user, the port and the key of the machine; the exit status
is that of ssh. The key exists as long as the test's process.
"""

from __future__ import annotations

import argparse
import os
import shutil

from harness.cli.attach import add_target
from harness.errors import HostError
from harness.live import client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_target(parser)
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="run this instead of a shell"
    )


def main(options: argparse.Namespace) -> int:
    """Become ssh."""
    program = shutil.which("ssh")
    if program is None:
        raise HostError("there is no ssh program", hint="install openssh-client")
    way = client.target(options.machine, client.processes()).ask("ssh")
    words = options.command[options.command[:1] == ["--"] :]
    os.execv(program, command(way, words))


def command(way: dict[str, str], words: list[str]) -> list[str]:
    """Return the command line of ssh.

    Args:
        way: User, host, port and key.
        words: The command in the guest; none for a shell.
    """
    options = (
        "IdentitiesOnly=yes",  # an agent with many keys would be refused before this one
        "StrictHostKeyChecking=no",  # the port leads to another machine in each test
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    )
    return [
        "ssh",
        "-i",
        way["key"],
        "-p",
        str(way["port"]),
        *(part for option in options for part in ("-o", option)),
        f"{way['user']}@{way['host']}",
        *words,
    ]
