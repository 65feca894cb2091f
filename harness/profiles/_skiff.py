"""The texts that skiff prints and reads; ``images/skiff/README.md`` documents them."""

from __future__ import annotations

import json
import re
from typing import cast

from harness.profiles.terms import BootRecord, Install, Malformed, Slot, SlotState


def menu(output: str) -> list[str]:
    """Return the lines of systemd-boot's menu.

    systemd-boot centres the menu in the firmware's largest text mode, which may be below the last line
    of the console's screen. So the cursor movements separate the lines, not the rows of the screen.

    Args:
        output: The console's output that drew the menu.
    """
    drawing = output.rpartition("\x1b[2J")[2].partition("Boot in ")[0]
    pieces = re.split(r"\x1b\[\d+;\d+H", drawing)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", piece).strip() for piece in pieces]
    return [line for line in lines if line]


def _number(word: str) -> int | None:
    return int(word) if word.isdigit() else None


def slot(name: str, status: str) -> Slot:
    """Parse the value of a ``SLOT_*`` line of ``skiff-status``.

    Args:
        name: The slot's name.
        status: ``VERSION STATE TRIES_LEFT TRIES_DONE``; ``-`` where there is none.
    """
    version, state, tries_left, tries_done = status.split(" ")
    return Slot(
        name,
        "" if version == "-" else version,
        cast(SlotState, state),
        _number(tries_left),
        _number(tries_done),
    )


def record(line: str) -> BootRecord:
    """Parse a line of ``/var/lib/skiff/boots``."""
    time, boot, version, slot, tries, outcome = line.split(" ")
    return BootRecord(time, boot.replace("-", ""), version, slot, _number(tries), outcome)


def settings(answers: Install) -> str:
    """Return the ``user-data`` from which an unattended installation takes the answers."""
    # A JSON string is a double-quoted YAML scalar, which the installer's subset of YAML accepts.
    lines = ["#cloud-config", "skiff:", "  install:"]
    for name in ("disk", "hostname", "user", "password"):
        if value := getattr(answers, name):
            lines.append(f"    {name}: {json.dumps(value)}")
    if answers.key:
        lines += ["    ssh_authorized_keys:", f"      - {json.dumps(answers.key)}"]
    if answers.cluster:
        words = ";".join(answers.cluster.splitlines())
        lines.append(f"    cluster: {json.dumps(words)}")
    lines.append("    finally: poweroff")
    return "\n".join(lines) + "\n"


def malformed(answers: Install, how: Malformed) -> tuple[str, str]:
    """Return a malformed ``user-data``, and the line and reason that the installer reports."""
    lines = settings(answers).splitlines(keepends=True)
    if how == "unknown key":
        return "".join(lines).replace("disk:", "disc:"), r":4: unknown key 'disc'"
    if how == "no header":
        return "".join(lines[1:]), r":1: .*#cloud-config"
    return "".join(lines[:4]), r":4: .*hostname"
