"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import UsageError
from harness.host.accel import CHOICES
from harness.lab import Lab
from harness.spec import parse_size

Options = argparse._ActionsContainer
"""What takes options: a parser, or a group of one."""

RUNS: Final = (Path(".harness/runs"), Path(".harness/gate"))
"""Where runs and gates of the working folder leave their results."""


def add_json(parser: Options) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_images(parser: Options) -> None:
    """Add ``--images``."""
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of images besides images/ of the working folder and Harness' own; can be"
        " given several times",
    )


def add_runs(parser: Options, meaning: str) -> None:
    """Add ``--runs``; ``meaning`` says what a place is."""
    parser.add_argument(
        "--runs",
        type=Path,
        action="append",
        metavar="DIR",
        help=f"{meaning}; can be given several times (default: {' and '.join(map(str, RUNS))})",
    )


def earlier_runs(options: argparse.Namespace) -> list[Path]:
    """Return the places of ``--runs``; by default those that exist."""
    if options.runs is not None:
        return list(options.runs)
    return [folder for folder in RUNS if folder.is_dir()]


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that start machines."""
    add_images(parser)
    parser.add_argument(
        "--arch", default=None, help="x86_64 or aarch64 (default: the image's first)"
    )
    parser.add_argument(
        "--accel",
        default="auto",
        choices=CHOICES,
        help="the accelerator; auto takes KVM if it proves itself (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="reach a state by its steps instead of its saved machine",
    )


def lab_of(options: argparse.Namespace, image: str = "", **further: Any) -> Lab:
    """Return a lab for the options of a command.

    Args:
        options: The options; the lab's defaults stand in for those that the command lacks.
        image: The image under test.
        further: Further arguments of :class:`~harness.lab.Lab`.
    """
    return Lab(
        image,
        arch=getattr(options, "arch", None),
        images=image_folders(options),
        accel=getattr(options, "accel", "auto"),
        fresh=getattr(options, "fresh", False),
        **further,
    )


def image_folders(options: argparse.Namespace) -> list[Path] | None:
    """Return the project's folders of images; ``None`` leaves the choice to the lab.

    Raises:
        UsageError: A folder that ``--images`` names does not exist.
    """
    named = further_images(options)
    if not named:
        return None
    own = Path("images")
    return [own, *named] if own.is_dir() else named


def further_images(options: argparse.Namespace) -> list[Path]:
    """Return the folders that ``--images`` names.

    Raises:
        UsageError: One of them does not exist.
    """
    named = [Path(folder) for folder in options.images]
    for folder in named:
        if not folder.is_dir():
            raise UsageError(f"--images {folder}: there is no such folder")
    return named


def print_json(report: Mapping[str, Any]) -> None:
    """Print a report as JSON; paths become strings."""
    print(json.dumps(report, indent=2, default=str))


def say(line: str) -> None:
    """Print one line for people, on standard error: standard output belongs to the result."""
    print(f"harness: {line}", file=sys.stderr)


def size(text: str) -> int:
    """Return the bytes of a size such as ``8GiB``, for argparse."""
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.what) from error
