"""skiff's record of boots, run on this host: the real shell functions, on a record of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "images/skiff/mkosi/mkosi.extra/usr/lib/skiff"
BOOT = "0123456789abcdef0123456789abcdef"
NOTES = 60

# What a machine does where a boot's outcome is written while somebody rolls back, many times over.
RACE = r"""
set -eu
cd "$1"
. ./slots.sh
boot=$2
# Of boot-record, the function that rewrites the line of this boot.
eval "$(sed -n '/^outcome() {/p; /^rewrite() {/,/^}/p' boot-record)"
note 1 a 3 started "$boot"
( for n in $(seq "$3"); do outcome "good$n"; done ) &
for n in $(seq "$3"); do note 2 b 3 "chosen$n"; done
wait
"""


def test_no_line_is_lost_while_another_is_rewritten(tmp_path: Path) -> None:
    """A boot's outcome rewrites the record; what is noted meanwhile is in it afterwards."""
    for name in ("slots.sh", "boot-record"):
        text = (LIBRARY / name).read_text()
        for there, here in (
            ("/var/lib/skiff/boots", f"{tmp_path}/boots"),
            ("/run/skiff-boots.lock", f"{tmp_path}/lock"),
        ):
            text = text.replace(there, here)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["bash", "-c", RACE, "race", str(tmp_path), BOOT, str(NOTES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "boots").read_text().splitlines()
    outcomes = [line.split(" ")[-1] for line in lines if f" {BOOT} " in line]
    assert outcomes == [f"good{NOTES}"]
    noted = [line.split(" ")[-1] for line in lines if f" {BOOT} " not in line]
    assert noted == [f"chosen{n}" for n in range(1, NOTES + 1)]
