"""Run scenarios: pytest with Harness' options, on the suites by default.

All arguments go to pytest as they are: harness run suites/install --image skiff -k serial
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    # The command line hands these over without looking: options among them are pytest's.
    parser.add_argument("arguments", nargs="*", metavar="PYTEST-ARGUMENT")


def main(options: argparse.Namespace) -> int:
    """Run pytest and return its exit status."""
    given = list(options.arguments)
    if not given or given[0].startswith("-"):
        given.insert(0, "suites")
    # pytest in a process of its own: it takes over signals, capture and the exit status.
    command = [sys.executable, "-m", "pytest", *given]
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # The terminal sent it to pytest as well, which stops its machines in order.
                continue
