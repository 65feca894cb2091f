"""The micro guest, booted once for the tests of a module that leave it as they found it."""

from __future__ import annotations

import pytest

from fixtures.machines import Boot
from harness.machine import Machine


@pytest.fixture(scope="module")
def micro(shared_boot: Boot) -> Machine:
    """A booted micro guest, logged in on its console."""
    machine = shared_boot("micro")
    machine.os.login()
    return machine
