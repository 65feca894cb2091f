"""States: a fork of an installed system equals a system that was installed step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness import Installable, Lab, Machine, errors, points

pytestmark = pytest.mark.needs("install", "ssh", "systemd", "verity")


SCENARIOS: dict[str, Callable[[Machine[Any]], str]] = {
    "slot": lambda machine: machine.os.slot(),
    "version": lambda machine: machine.os.version(),
    "verified": lambda machine: str(machine.os.verified()),
    "who": lambda machine: machine.console.run("id -un; hostname").stdout,
    "units": lambda machine: machine.succeed("systemctl --failed --no-legend --plain"),
    "read-only": lambda machine: machine.succeed(machine.os.as_root("touch /usr/here")),
    "absent": lambda machine: machine.succeed("systemctl start nothing-like-it.service"),
}
"""The image passes all but the last two."""


def verdicts(machine: Machine[Any]) -> dict[str, str]:
    """Return the outcome of each scenario on a machine."""
    outcomes = {}
    for name, scenario in SCENARIOS.items():
        try:
            outcomes[name] = f"passed: {scenario(machine)}"
        except errors.CommandError as error:
            outcomes[name] = f"{error.verdict.value}: {error.evidence}"
    return outcomes


@pytest.mark.tier(
    "nightly",
    cost=110,
    catches="a fork that differs from a machine installed step by step: a fault of Harness",
    uses=("installed",),
)
def test_cold_and_forked_agree(lab: Lab) -> None:
    """The same scenarios end the same on a fork and on a machine that was installed step by step."""
    forked = verdicts(lab.fork(points.installed))
    cold: Machine[Installable] = lab.reach(points.installed)
    assert cold.origin is None
    assert verdicts(cold) == forked
    assert forked["read-only"].startswith("product: ")
    assert forked["slot"] == f"passed: {cold.os.slot_names[0]}"


@pytest.mark.tier(
    "gate", cost=10, catches="forks of one machine that disturb each other", uses=("installed",)
)
def test_two_forks_are_both_reached(lab: Lab) -> None:
    """Forks of one machine are isolated: each answers over SSH, at the address that it had."""
    forks = [lab.fork(points.installed), lab.fork(points.installed)]
    for number, machine in enumerate(forks):
        machine.succeed(f"echo {number} > who")
    assert [machine.succeed("cat who") for machine in forks] == ["0\n", "1\n"]
