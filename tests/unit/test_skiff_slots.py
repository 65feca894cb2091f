"""skiff's slots: the image's shell functions run on this host, on boot entries of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.programs import need

SLOTS = (
    Path(__file__).resolve().parents[2] / "images/skiff/mkosi/mkosi.extra/usr/lib/skiff/slots.sh"
)

# With the folder of the entries, and the label of slot b, as this host has them.
STATE = r"""
set -eu
. "$1"
entries() { echo "$2"; }
slot_version() { echo 2; }
slot_state /dev/none b
"""


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("skiff_2+3-0.efi", b"MZ", "2 trying 3 0"),
        ("skiff_2+3.efi", b"MZ", "2 good - -"),
        ("skiff_2+0-3.efi", b"MZ", "2 bad 0 3"),
        ("skiff_1+3.efi", b"MZ", "2 bad - -"),
        ("skiff_2+3-0.efi", b"", "2 bad - -"),
    ],
)
def test_the_state_of_a_slot_is_that_of_its_entry(
    tmp_path: Path, name: str, content: bytes, state: str
) -> None:
    need("bash")
    (tmp_path / name).write_bytes(content)
    process = subprocess.run(
        ["bash", "-c", STATE.replace('"$2"', f'"{tmp_path}"'), "state", str(SLOTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == f"{state}\n", process.stderr
