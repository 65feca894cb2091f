"""Save the picture on the screen of a machine of a running test, as PNG.

The machine needs a display: lab.boot(display=True). 'harness attach' shows the serial console of any.
"""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path

from harness.cli.attach import add_target
from harness.errors import UsageError
from harness.live import client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_target(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the file, - for standard output (default: MACHINE.png)",
    )


def main(options: argparse.Namespace) -> int:
    """Save the picture and print its path."""
    target = client.target(options.machine, client.processes())
    picture = base64.b64decode(target.ask("screenshot")["png"])
    if options.output == Path("-"):
        sys.stdout.buffer.write(picture)
        return 0
    path = options.output or Path(f"{target.data['machine']}.png")
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    print(path)
    return 0
