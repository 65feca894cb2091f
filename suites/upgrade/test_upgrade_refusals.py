"""Upgrades that are refused: the slots keep every byte, and nothing else is booted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

from fixtures.releases import Releases
from fixtures.states import ForkOf
from harness.errors import UpgradeRefusedError
from harness.machine import Machine
from harness.profiles import UpdateFile
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
    ("file", "fault"),
    [
        ("root", FlippedBit()),
        ("root", CutOff(percent=50)),
        pytest.param("kernel", WrongLength(by=1000), marks=pytest.mark.nightly),
        pytest.param("kernel", ServerError(503), marks=pytest.mark.nightly),
        (None, ExpiredCertificate()),
        (None, UnknownCa()),
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
    machine: Machine,
    update_server: UpdateServer,
    publish: Address,
    releases: Releases,
    file: UpdateFile | None,
    fault: Fault,
) -> None:
    """What comes is not what was signed, or not from whom it has to be."""
    source = publish(releases.new)
    if file is None:
        met = update_server.fault(fault)
    else:
        met = update_server.fault(f"/{releases.new}/{machine.os.update_files[file]}", fault)
    with met:
        assert refused(machine, source)
        assert met.hits, "the fault was never met"


def test_a_wrong_signature(
    machine: Machine,
    update_server: UpdateServer,
    publish: Address,
    update_set: Callable[[str], list[Path]],
    releases: Releases,
) -> None:
    """The signature is that of another version."""
    pattern = machine.os.update_files.get("signature")
    if pattern is None:
        pytest.skip(f"the updates of image {releases.name} have no signature of their own")
    source = publish(releases.new)
    (other,) = [path for path in update_set(releases.newest) if fnmatch(path.name, pattern)]
    (right,) = [path for path in update_set(releases.new) if fnmatch(path.name, pattern)]
    update_server.publish(other.read_bytes(), f"{releases.new}/{right.name}")
    assert machine.os.says("signature", refused(machine, source))


def test_a_signature_by_a_stranger(
    machine: Machine,
    update_server: UpdateServer,
    publish: Address,
    artifacts_of: Callable[[str], Mapping[str, Path]],
    releases: Releases,
) -> None:
    """The signature is right, and by a key that the system does not know."""
    pattern = machine.os.update_files.get("signature")
    files = artifacts_of(releases.new)
    if pattern is None or "stranger" not in files:
        pytest.skip(f"image {releases.name} has no artifact 'stranger': see docs/profiles.md")
    source = publish(releases.new)
    update_server.publish(files["stranger"], f"{releases.new}/{pattern}")
    assert machine.os.says("signature", refused(machine, source))


def test_no_space(
    machine: Machine,
    publish: Address,
    update_set: Callable[[str], list[Path]],
    releases: Releases,
) -> None:
    """What is to be fetched does not fit."""
    source = publish(releases.new)
    size = sum(path.stat().st_size for path in update_set(releases.new))
    machine.os.fill_state(keep=size // 4)
    assert machine.os.says("space", refused(machine, source))


def test_older_than_allowed(machine: Machine, publish: Address, releases: Releases) -> None:
    """A policy of the machine names the oldest version."""
    machine.os.allow_from(releases.newest)
    assert machine.os.says("older", refused(machine, publish(releases.new)))
