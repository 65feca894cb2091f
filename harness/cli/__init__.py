"""The command line: ``harness COMMAND``; one module for each command.

Each command starts, forks and builds machines through :class:`harness.lab.Lab`. Results go to standard
output; progress and errors go to standard error. Every list and report can be printed as JSON
(``--json``): one object, whose keys the command's help describes. Later versions may add keys.

===========  ==================================================================================
exit status  meaning
===========  ==================================================================================
0            the command succeeded
1            the command failed: an image does not build, a machine did not come up, an entry of the
             cache is damaged or in use
2            wrong usage: an unknown name, a wrong option
3            the host lacks something, or something on it failed
130          the user interrupted the command
===========  ==================================================================================

``harness acceptance`` has exit statuses of its own; see :mod:`harness.cli.acceptance`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from harness.errors import CancelledError, HarnessError, Verdict, verdict_of

COMMANDS: Final[Mapping[str, str]] = {
    "acceptance": "Judge an image: run the acceptance suites with pytest",
    "attach": "Attach this terminal to the console of a machine of a running test",
    "cluster": "Start a cluster and open a Python prompt with it",
    "continue": "Let a test go on that --pause-on-failure has paused",
    "doctor": "Report what this host can do and what it lacks",
    "gate": "Plan, run and judge a change here, or judge what runners left",
    "history": "Keep the results of past runs, and say what became of each test",
    "images": "List, build, locate, verify and remove images",
    "job": "Print a Kubernetes Job that runs a plan, and collect its results",
    "known": "List known failures, and those that have expired or no longer occur",
    "lab": "Open a Python prompt with a lab: boot, fork and try out machines",
    "plan": "Print the jobs of a gate: which tests of which images run, and why",
    "ps": "List running tests and their machines",
    "report": "Write the report of a run: one HTML file, or text",
    "repro": "Run the test of a bundle again, and say whether it fails in the same way",
    "resurrect": "Resume the machines of a failed test, out of its bundle",
    "screenshot": "Save the picture on the screen of a machine of a running test",
    "shell": "Start a machine and attach this terminal to its console",
    "ssh": "Log in to a machine of a running test over SSH",
    "states": "List, explain and remove saved states",
}
"""Each command, which is a module of this package, and its summary."""

UNPARSED: Final = ("acceptance",)
"""Commands whose arguments belong to another program."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: The arguments; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), "")
    parser = _parser(command)
    if command in UNPARSED and words[0] == command and words[1:2] not in (["-h"], ["--help"]):
        options = parser.parse_args([command])
        options.arguments = words[1:]
    else:
        options = parser.parse_args(words)
    try:
        return int(options.handler(options))
    except KeyboardInterrupt:
        print("harness: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has gone; a second error at exit would only repeat this.
        sys.stderr.close()
        return 0
    except HarnessError as error:
        return print_error(error)


def print_error(error: HarnessError) -> int:
    """Print an error to standard error and return the exit status that it stands for."""
    if isinstance(error, CancelledError):
        print(f"harness: {error}", file=sys.stderr)
        return 130
    print(f"harness: error: {error}", file=sys.stderr)
    return {Verdict.TEST: 2, Verdict.INFRA: 3}.get(verdict_of(error), 1)


def version() -> str:
    """Return the version of Harness."""
    # Reading the metadata of packages takes longer than the other imports together.
    from importlib.metadata import version

    return version("harness-os")


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit."""
        print(f"harness {version()}")
        parser.exit()


def _parser(command: str) -> argparse.ArgumentParser:
    """Return the parser; it imports the module of ``command`` only, because imports take time."""
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Boots built operating-system images in QEMU and decides whether to accept them.",
        epilog="harness COMMAND --help explains a command.",
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name != command:
            commands.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"harness.cli.{name}")
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(sub)
        sub.set_defaults(handler=module.main)
    return parser
