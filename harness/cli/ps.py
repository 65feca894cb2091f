"""List running tests and their machines: one line a machine.

A line has the machine, its state, what it does now and for how long, its SSH port, and the last line on
its console. Tests of this user are listed, whatever terminal, folder or worker they run in. A test shows
up with its first machine.
"""

from __future__ import annotations

import argparse
from typing import Any

from harness.cli.options import add_json, print_json
from harness.live import client
from harness.live.mirror import printable

_WIDTH = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_json(parser)


def main(options: argparse.Namespace) -> int:
    """List them."""
    processes = client.processes()
    if options.json:
        keys = ("run", "worker", "pid", "paused", "machines")
        print_json({"runs": [{key: each.data[key] for key in keys} for each in processes]})
        return 0
    if not processes:
        print("no test with a machine runs as this user")
    for process in processes:
        print(f"{process.name}  (pid {process.data['pid']})")
        if paused := process.data["paused"]:
            print(printable(f"  paused: {paused['test']}: {paused['error']}"))
            print(f"  'harness continue {process.name}' goes on")
        for machine in process.data["machines"]:
            print(printable("  " + line(machine)))
    return 0


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
    ]
    return "  ".join(parts)


def _cut(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= _WIDTH else first[: _WIDTH - 4] + " ..."
