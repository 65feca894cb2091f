"""Each scenario fails where the image is broken in its way: ``./run pytest tests/broken -n auto``.

Not part of ``./run test``: it takes one to seven minutes for each case under TCG.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Selection
from tests.broken.cases import CASES, Case

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_image_is_noticed(case: Case, image: Selection, tmp_path: Path) -> None:
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.broken.plugin", "--broken", case.name),
            *(f"suites/{case.scenario}", "--tier", "nightly", *case.options),
            *("-q", f"--evidence={tmp_path}"),
            *(f"--image={image.name}/{image.variant}:{image.version}", f"--arch={image.arch}"),
            *("-p", "no:cacheprovider"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    text = process.stdout + process.stderr
    assert process.returncode == 1, text
    # pytest begins the lines of a failure so. Other lines hold the scenario's own text.
    reasons = [line for line in text.splitlines() if line.startswith("E ")]
    assert any(re.search(case.says, line) for line in reasons), text
