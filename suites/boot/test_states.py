"""States: what a fork of an installed system is, the system reached by the steps themselves is too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures import points
from fixtures.machines import Boot
from fixtures.states import ForkOf, States
from harness.errors import CommandError
from harness.machine import Machine

pytestmark = pytest.mark.needs("install", "ssh", "systemd", "verity")


SCENARIOS: dict[str, Callable[[Machine], str]] = {
    "slot": lambda machine: machine.os.slot(),
    "version": lambda machine: machine.os.version(),
    "verified": lambda machine: str(machine.os.verified()),
    "who": lambda machine: machine.console.run("id -un; hostname").stdout,
    "units": lambda machine: machine.succeed("systemctl --failed --no-legend --plain"),
    "read-only": lambda machine: machine.succeed(machine.os.as_root("touch /usr/here")),
    "absent": lambda machine: machine.succeed("systemctl start nothing-like-it.service"),
}
"""Some that the image passes, two that it fails."""


def verdicts(machine: Machine) -> dict[str, str]:
    """Return what each scenario comes to on a machine."""
    found = {}
    for name, scenario in SCENARIOS.items():
        try:
            found[name] = f"passed: {scenario(machine)}"
        except CommandError as error:
            found[name] = f"{error.verdict.value}: {error.evidence}"
    return found


def test_cold_and_forked_agree(fork_of: ForkOf, states: States, boot: Boot) -> None:
    """The same scenarios end the same on a fork and on a machine that went all the way."""
    forked = verdicts(fork_of(points.installed))
    cold = states.reach(points.installed, boot)
    assert cold.origin is None
    assert verdicts(cold) == forked
    assert forked["read-only"].startswith("product: ")
    assert forked["slot"] == f"passed: {cold.os.slot_names[0]}"


def test_two_forks_are_both_reached(fork_of: ForkOf) -> None:
    """Forks of one machine are alone: each answers over SSH, by the address that it had."""
    forks = [fork_of(points.installed), fork_of(points.installed)]
    for number, machine in enumerate(forks):
        machine.succeed(f"echo {number} > who")
    assert [machine.succeed("cat who") for machine in forks] == ["0\n", "1\n"]
