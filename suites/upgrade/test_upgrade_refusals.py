"""Upgrades that are refused: the slots keep every byte, and nothing else is booted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.states import ForkOf
from harness.errors import UpgradeRefusedError
from harness.machine import Machine
from harness.services import (
    Ca,
    CutOff,
    ExpiredCertificate,
    FlippedBit,
    ServerError,
    UnknownCa,
    UpdateServer,
    WrongLength,
)
from harness.services.faults import Fault
from suites.conftest import settled

pytestmark = pytest.mark.needs("upgrade", "ssh")

Address = Callable[[str], str]


@pytest.fixture
def machine(fork_of: ForkOf, update_server: UpdateServer, ca: Ca) -> Iterator[Machine]:
    """An installed system, whose slots are the same after the test as before."""
    machine = fork_of(settled, services=[update_server])
    machine.os.trust(ca.pem)
    slots = machine.os.slots()
    # A fork begins with nothing written. With --fresh the first boot, found good, renamed its entry.
    written = [] if machine.origin is not None else machine.os.slots_written()
    yield machine
    assert machine.os.slots() == slots
    assert machine.os.slots_written() == written


def refused(machine: Machine, source: str) -> str:
    """Let the system refuse, and return its reason."""
    with pytest.raises(UpgradeRefusedError) as caught:
        machine.os.upgrade(source)
    return caught.value.what


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("/2/*root*", FlippedBit()),
        ("/2/*root*", CutOff(percent=50)),
        pytest.param("/2/*.efi", WrongLength(by=1000), marks=pytest.mark.nightly),
        pytest.param("/2/*.efi", ServerError(503), marks=pytest.mark.nightly),
        ("", ExpiredCertificate()),
        ("", UnknownCa()),
    ],
    ids=[
        "flipped bit",
        "truncated",
        "wrong length",
        "server error",
        "expired certificate",
        "unknown CA",
    ],
)
def test_a_faulty_server(
    machine: Machine, update_server: UpdateServer, publish: Address, pattern: str, fault: Fault
) -> None:
    """What comes is not what was signed, or not from whom it has to be."""
    source = publish("2")
    with update_server.fault(pattern, fault) if pattern else update_server.fault(fault) as met:
        assert refused(machine, source)
        assert met.hits, "the fault was never met"


def test_a_wrong_signature(
    machine: Machine,
    update_server: UpdateServer,
    publish: Address,
    update_set: Callable[[str], list[Path]],
) -> None:
    """The signature is that of another version."""
    source = publish("2")
    (other,) = [path for path in update_set("3") if path.name == "SHA256SUMS.gpg"]
    update_server.publish(other.read_bytes(), "2/SHA256SUMS.gpg")
    assert "signature" in refused(machine, source)


def test_no_space(machine: Machine, publish: Address) -> None:
    """What is to be fetched does not fit."""
    machine.os.fill_state(keep=30_000_000)
    assert "space" in refused(machine, publish("2"))


def test_older_than_allowed(machine: Machine, publish: Address) -> None:
    """A policy of the machine names the oldest version."""
    machine.os.allow_from("3")
    assert "older" in refused(machine, publish("2"))
