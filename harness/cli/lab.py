"""Open a Python prompt with a lab: boot, fork and try out machines.

The prompt has all public names of Harness, and:
  lab              the lab: lab.boot(), lab.fork(points.installed), lab.artifacts() ...
  attach(machine)  attaches this terminal to the machine's console; Ctrl-] comes back to the prompt

Modules of the working folder can be imported. Tab completes names; the history is kept in the folder of
the cache. An error of Harness is printed as a message, without a traceback. Ctrl-D leaves and ends all
machines. The evidence is kept below .harness/lab.

Without a terminal, the command reads a whole script from standard input, prints the value of each
statement that has one, as the prompt does, and stops at the first error. The exit status is then that of
the command line (0, 1, 2, 3 or 130); 1 for an exception that is not Harness' own.
"""

from __future__ import annotations

import argparse
import ast
import code
import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import harness
from harness import paths
from harness.cli import print_error, version
from harness.cli.options import add_machine, lab_of
from harness.errors import HarnessError, UsageError, WaitTimeoutError
from harness.lab import Lab
from harness.machine import Machine

EVIDENCE: Final = Path(".harness/lab")
HISTORY: Final = "lab.history"
"""The file of the prompt's history, in the folder of the cache."""

HISTORY_LINES: Final = 10_000

_PROMPT_SECONDS: Final = 5.0
"""How long :func:`attach` waits for a shell's prompt after the person has left the console."""

_SCRIPT: Final = "<stdin>"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "image",
        nargs="?",
        default="",
        metavar="IMAGE",
        help="the image under test, NAME[/VARIANT][:VERSION] (default: the project's only one)",
    )
    add_machine(parser)
    parser.add_argument(
        "--timeout-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="stretch the deadlines of guests by X, besides what emulation costs",
    )
    parser.add_argument(
        "--services",
        default="auto",
        choices=("auto", "docker", "process"),
        help="how servers for guests run (default: %(default)s)",
    )


def main(options: argparse.Namespace) -> int:
    """Open the prompt, or run the script on standard input."""
    with lab_of(
        options,
        options.image,
        evidence=EVIDENCE,
        keep=True,
        timeout_scale=options.timeout_scale,
        services=options.services,
    ) as lab:
        if options.image:
            _ = lab.image  # a wrong name is an error now, not at the first boot
        return interact(namespace(lab), banner(lab))


def interact(names: dict[str, Any], greeting: str) -> int:
    """Open a prompt with names, or run the script on standard input; return the exit status."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # as at Python's own prompt
    if not sys.stdin.isatty():
        return run_script(sys.stdin.read(), names)
    with _history(names):
        Prompt(names).interact(greeting, exitmsg="")
    return 0


def namespace(lab: Lab) -> dict[str, Any]:
    """Return the names of the prompt: Harness' public ones, ``lab`` and ``attach``."""
    names = {name: getattr(harness, name) for name in harness.__all__}
    return {**names, "harness": harness, "lab": lab, "attach": attach, "__name__": "__console__"}


def banner(lab: Lab) -> str:
    """Return the five lines that the prompt begins with."""
    try:
        subject = str(lab.image)
        boot = "lab.boot()"
    except HarnessError:
        # Several images and none was named, or none at all: the prompt serves those of Harness itself.
        subject = f"images {', '.join(lab.catalog.names)}"
        boot = f'lab.boot("{lab.catalog.names[0]}")'
    return "\n".join(
        [
            f"Harness {version()}, {subject}. Ctrl-D leaves and ends all machines.",
            f"  machine = {boot}; machine.os.login()  # boot and log in on the console",
            "  machine = lab.fork(points.live)  # or start from a state, saved or built now",
            '  machine.succeed("uname -r")  # run a command; Tab completes names',
            "  attach(machine)  # the console in this terminal; Ctrl-] comes back",
        ]
    )


def attach(machine: Machine[Any]) -> None:
    """Attach this terminal to a machine's console until the person presses Ctrl-].

    If Harness was logged in on the console before, it takes the shell back afterwards.

    Args:
        machine: The machine.

    Raises:
        UsageError: There is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError("attach() needs a terminal", hint="use machine.console.run(COMMAND)")
    console = machine.console
    had_shell = console.logged_in
    end = console.attach()
    if end == "closed":
        print(f"the console of {machine.name} has ended")
    elif had_shell and end == "left":
        try:
            console.login(None, deadline=_PROMPT_SECONDS)
        except WaitTimeoutError:
            print(f"no shell prompt on {machine.name}: machine.os.login() logs in again")


class Prompt(code.InteractiveConsole):
    """The prompt: a message for an error of Harness, a traceback for any other."""

    def showtraceback(self) -> None:
        """Print the exception that is being handled."""
        error = sys.exception()
        if isinstance(error, HarnessError):
            print_error(error)
        elif isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            super().showtraceback()


def run_script(source: str, names: dict[str, Any]) -> int:
    """Run a script as if each of its statements was typed at the prompt; stop at the first error.

    Args:
        source: The script.
        names: The names that it begins with.

    Returns:
        The exit status.
    """
    try:
        for statement in ast.parse(source, _SCRIPT).body:
            exec(compile(ast.Interactive([statement]), _SCRIPT, "single"), names)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except HarnessError as error:
        return print_error(error)
    except Exception as error:
        # The script's frames alone: those of the prompt are of no use to its author.
        own = error.__traceback__
        while own is not None and own.tb_frame.f_code.co_filename != _SCRIPT:
            own = own.tb_next
        traceback.print_exception(error.with_traceback(own))
        return 1
    return 0


@contextlib.contextmanager
def _history(names: dict[str, Any]) -> Iterator[None]:
    """Complete names and keep the history of the prompt while the block runs."""
    try:
        import readline
        import rlcompleter
    except ImportError:  # a Python that was built without it
        yield
        return
    file = paths.cache_dir() / HISTORY
    readline.set_completer(rlcompleter.Completer(names).complete)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
        readline.set_completer(None)
