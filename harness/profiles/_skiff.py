"""The texts that skiff prints and reads. ``images/skiff/README.md`` documents them."""

from __future__ import annotations

import json
import re
from typing import cast

from harness.profiles.terms import BootRecord, Install, Malformed, Slot, SlotState


def menu(shown: str) -> list[str]:
    """Return the lines of systemd-boot's menu, from the output that drew it.

    It puts them where the firmware's largest text mode has its middle, which may be below the last
    line of the console's screen: so they are told apart by the moves of the cursor.
    """
    drawn = shown.rpartition("\x1b[2J")[2].partition("Boot in ")[0]
    pieces = re.split(r"\x1b\[\d+;\d+H", drawn)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", piece).strip() for piece in pieces]
    return [line for line in lines if line]


def _number(word: str) -> int | None:
    return int(word) if word.isdigit() else None


def slot(name: str, told: str) -> Slot:
    """Return what a line of ``skiff-status`` says of a slot."""
    version, state, left, done = told.split(" ")
    return Slot(
        name,
        "" if version == "-" else version,
        cast(SlotState, state),
        _number(left),
        _number(done),
    )


def record(line: str) -> BootRecord:
    """Return what a line of ``/var/lib/skiff/boots`` says of a boot."""
    time, boot, version, slot, tries, outcome = line.split(" ")
    return BootRecord(time, boot.replace("-", ""), version, slot, _number(tries), outcome)


def settings(answers: Install) -> str:
    """Return the answers as the file that an unattended installation reads."""
    # JSON strings are YAML's double-quoted ones, which is what the installer's subset takes.
    lines = ["#cloud-config", "skiff:", "  install:"]
    for name in ("disk", "hostname", "user", "password"):
        if value := getattr(answers, name):
            lines.append(f"    {name}: {json.dumps(value)}")
    if answers.key:
        lines += ["    ssh_authorized_keys:", f"      - {json.dumps(answers.key)}"]
    lines.append("    finally: poweroff")
    return "\n".join(lines) + "\n"


def malformed(answers: Install, how: Malformed) -> tuple[str, str]:
    """Return such a file that is spoilt, and the line and the reason that the installer names."""
    lines = settings(answers).splitlines(keepends=True)
    if how == "unknown key":
        return "".join(lines).replace("disk:", "disc:"), r":4: unknown key 'disc'"
    if how == "no header":
        return "".join(lines[1:]), r":1: .*#cloud-config"
    return "".join(lines[:4]), r":4: .*hostname"
