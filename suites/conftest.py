"""Fixtures that several suites share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Install, Lab, Machine, Selection, points, profile_of


@pytest.fixture
def answers(lab: Lab) -> Install:
    """Return what a user answers to the installer."""
    return points.install_answers(lab)


@pytest.fixture
def check_state(image: Selection) -> Callable[[Path], None]:
    """Return what checks on the host that the state partition of a raw disk is whole."""
    return profile_of(image).check_state


@pytest.fixture
def check_verified(image: Selection) -> Callable[[Machine[Any]], None]:
    """Return what checks that reads from the root are verified, on an image that declares verity."""

    def check(machine: Machine[Any]) -> None:
        if "verity" in image.capabilities:
            assert machine.os.verified()

    return check
