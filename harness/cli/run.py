"""Run scenarios: pytest with Harness' options, on the suites by default.

All arguments go to pytest as they are: harness run suites/install --image skiff -k serial
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

_FOLDERS: Final = ("--evidence", "--images", "--recording")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    # The command line hands these over without looking: options among them are pytest's.
    parser.add_argument("arguments", nargs="*", metavar="PYTEST-ARGUMENT")


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each folder that one of Harness' options names joined to it.

    pytest looks for its configuration beside all paths that are given, before it knows what is an
    option's value.
    """
    words: list[str] = []
    for word in arguments:
        if words and words[-1] in _FOLDERS:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def main(options: argparse.Namespace) -> int:
    """Run pytest and return its exit status."""
    given = joined(options.arguments)
    # Harness' options are known from the first. Which of the arguments are paths pytest decides itself;
    # where there is none, these are.
    known = ["-p", "fixtures.plugin", "-o", "testpaths=suites"]
    # pytest in a process of its own: it takes over signals, capture and the exit status.
    command = [sys.executable, "-m", "pytest", *known, *given]
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # The terminal sent it to pytest as well, which stops its machines in order.
                continue
