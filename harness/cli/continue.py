"""Let a test go on that --pause-on-failure has paused; its machines end."""

from __future__ import annotations

import argparse

from harness.cli.options import say
from harness.errors import UsageError
from harness.live import client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "run",
        nargs="?",
        default="",
        metavar="RUN",
        help="as 'harness ps' lists them (default: the only one that is paused)",
    )


def main(options: argparse.Namespace) -> int:
    """End the pause."""
    paused = [each for each in client.processes() if each.data["paused"]]
    chosen = [each for each in paused if not options.run or options.run in each.names]
    if len(chosen) != 1:
        what = "several tests are paused" if chosen else "no such test is paused"
        names = ", ".join(each.name for each in paused) or "none is"
        raise UsageError(what, hint=f"harness continue RUN: {names}")
    answer = client.ask(chosen[0].socket, "continue")
    say(f"{answer['test']} goes on")
    return 0
