"""skiff's log of its boots: the image's shell functions run on this host, on a log of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.programs import need

LIBRARY = Path(__file__).resolve().parents[2] / "images/skiff/mkosi/mkosi.extra/usr/lib/skiff"
BOOT = "0123456789abcdef0123456789abcdef"
NOTES = 60

# Writes the outcome of a boot many times, while rollbacks add lines.
RACE = r"""
set -eu
cd "$1"
. ./slots.sh
boot=$2
# From boot-record, only the function that rewrites the line of this boot.
eval "$(sed -n '/^outcome() {/p; /^rewrite() {/,/^}/p' boot-record)"
note 1 a 3 started "$boot"
( for n in $(seq "$3"); do outcome "good$n"; done ) &
for n in $(seq "$3"); do note 2 b 3 "chosen$n"; done
wait
"""


def test_rewriting_one_line_loses_no_other(tmp_path: Path) -> None:
    """Writing a boot's outcome rewrites the log; lines added meanwhile stay in it."""
    need("bash")
    for name in ("slots.sh", "boot-record"):
        text = (LIBRARY / name).read_text()
        for there, here in (
            ("/var/lib/skiff/boots", f"{tmp_path}/boots"),
            ("/run/skiff-boots.lock", f"{tmp_path}/lock"),
        ):
            text = text.replace(there, here)
        (tmp_path / name).write_text(text)
    process = subprocess.run(
        ["bash", "-c", RACE, "race", str(tmp_path), BOOT, str(NOTES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    lines = (tmp_path / "boots").read_text().splitlines()
    outcomes = [line.split(" ")[-1] for line in lines if f" {BOOT} " in line]
    assert outcomes == [f"good{NOTES}"]
    added = [line.split(" ")[-1] for line in lines if f" {BOOT} " not in line]
    assert added == [f"chosen{n}" for n in range(1, NOTES + 1)]
