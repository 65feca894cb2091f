"""Each scenario fails where the image is broken in its way: ``./run pytest tests/broken -n auto``.

Not part of ``./run test``: it takes one to seven minutes for each case under TCG.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import session
from tests.broken.cases import CASES, Case

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_image_is_noticed(case: Case, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.broken.plugin", "--broken", case.name),
            *(f"suites/{case.scenario}", *case.options, "-q", f"--evidence={tmp_path}"),
            *(f"--image={session.of(pytestconfig).reference}", "-p", "no:cacheprovider"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    # pytest begins them so. The rest has the scenario's own text, which says what it would have said.
    reasons = [line for line in said.splitlines() if line.startswith("E ")]
    assert any(re.search(case.says, line) for line in reasons), said
