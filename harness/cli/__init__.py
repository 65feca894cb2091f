"""The command line: ``harness SUB-COMMAND``; one module a sub-command.

Exit status: 0 done, 1 the thing asked for failed, 2 wrong usage, 3 the host lacks something, 130
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from harness.errors import CancelledError, HarnessError, Verdict

COMMANDS: Final = ("doctor", "images", "run", "shell", "states")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Boots built operating-system images in QEMU and decides whether to accept them.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"harness.cli.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(sub)
        sub.set_defaults(handler=module.main)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"] and given[1:2] not in (["-h"], ["--help"]):
        options = parser.parse_args(["run"])
        options.arguments = given[1:]
    else:
        options = parser.parse_args(given)
    try:
        return int(options.handler(options))
    except KeyboardInterrupt:
        print("harness: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except CancelledError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 130
    except HarnessError as error:
        print(f"harness: error: {error}", file=sys.stderr)
        return {Verdict.TEST: 2, Verdict.INFRA: 3}.get(error.verdict, 1)
