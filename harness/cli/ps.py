"""List running tests and their machines: one line a machine.

A line has the machine, its state, what it does now and for how long, its SSH port, the last line on its
console, and for how long it has been silent. Tests of this user are listed, whatever terminal, folder or
worker they run in. A test shows up with its first machine.

--watch goes on until the last of them has ended. A terminal shows the lines as they are now, each cut at
its edge; elsewhere a line is printed for each machine that has changed.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

from harness.cli.options import add_json, print_json
from harness.errors import UsageError
from harness.live import client
from harness.live.mirror import printable

_WIDTH: Final = 60

_NONE: Final = "no test with a machine runs as this user"

_PERIOD: Final = 1.0
"""Seconds between two looks: the lines count seconds."""

_COUNTING: Final = ("seconds", "silent")
"""The fields that change although nothing happens."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_json(parser)
    parser.add_argument(
        "--watch", action="store_true", help="go on until the last of the tests has ended"
    )


def main(options: argparse.Namespace) -> int:
    """List them."""
    if options.watch:
        if options.json:
            raise UsageError("--watch has no JSON", hint="ask again and again: harness ps --json")
        # Nothing sets this event; Ctrl-C ends the wait.
        ended = threading.Event()
        return watch(Terminal(file=sys.stdout, highlight=False), lambda: ended.wait(_PERIOD))
    processes = client.processes()
    if options.json:
        keys = ("run", "worker", "pid", "paused", "machines")
        print_json({"runs": [{key: each.data[key] for key in keys} for each in processes]})
        return 0
    if not processes:
        print(_NONE)
    for text in _lines(processes):
        print(text)
    return 0


def _lines(processes: list[client.Process]) -> Iterator[str]:
    for process in processes:
        yield f"{process.name}  (pid {process.data['pid']})"
        if paused := process.data["paused"]:
            yield printable(f"  paused: {paused['test']}: {paused['error']}")
            yield f"  'harness continue {process.name}' goes on"
        for machine in process.data["machines"]:
            yield printable("  " + line(machine))


def watch(terminal: Terminal, pause: Callable[[], object]) -> int:
    """Show the machines until no test has any.

    Args:
        terminal: Where to show them.
        pause: Waits until it is time to look again.
    """
    processes = client.processes()
    if not processes:
        terminal.print(_NONE)
        return 0
    show = _draw if terminal.is_terminal else _print_changes
    show(terminal, processes, pause)
    terminal.print("the tests have ended")
    return 0


def _draw(terminal: Terminal, processes: list[client.Process], pause: Callable[[], object]) -> None:
    with Live(console=terminal, auto_refresh=False, transient=True) as live:
        while processes:
            lines = (Text(each, no_wrap=True, overflow="ellipsis") for each in _lines(processes))
            live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines), refresh=True)
            pause()
            processes = client.processes()


def _print_changes(
    terminal: Terminal, processes: list[client.Process], pause: Callable[[], object]
) -> None:
    before: dict[str, dict[str, Any]] = {}
    while processes or before:
        now: dict[str, dict[str, Any]] = {}
        for process in processes:
            for machine in process.data["machines"]:
                name = client.Target(process, machine).name
                now[name] = {key: machine[key] for key in machine if key not in _COUNTING}
                if before.get(name) != now[name]:
                    text = printable(f"{process.name}  {line(machine)}")
                    terminal.print(Text(text), soft_wrap=True)
        for name in before.keys() - now.keys():
            terminal.print(Text(printable(f"{name} has ended")), soft_wrap=True)
        before = now
        if processes:
            pause()
            processes = client.processes()


def line(machine: dict[str, Any]) -> str:
    """Return the status of a machine as one line."""
    doing = machine["step"] or "no step"
    limit = f" of {machine['limit']:.0f}" if machine["limit"] else ""
    parts = [
        machine["machine"],
        f"{machine['image']} {machine['arch']}",
        machine["state"],
        f"{_cut(doing)} ({machine['seconds']:.0f}{limit} s)" if machine["step"] else doing,
        f"ssh {machine['ssh']}" if machine["ssh"] else "no ssh",
        machine["test"],
        f"> {_cut(machine['console'])}",
        f"(silent for {machine.get('silent', 0.0):.0f} s)",
    ]
    return "  ".join(parts)


def _cut(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= _WIDTH else first[: _WIDTH - 4] + " ..."
