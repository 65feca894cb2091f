"""Upgrades that are refused: the slots keep every byte, and nothing else is booted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from harness import (
    Lab,
    Machine,
    Releases,
    UpdateFile,
    UpdateServer,
    Upgradable,
    errors,
    faults,
    points,
)

pytestmark = pytest.mark.needs("upgrade", "ssh")

Address = Callable[[str], str]

NIGHTLY = pytest.mark.tier(
    "nightly",
    cost=14,
    catches="a fault of the server in a file that is not checked as the root is",
    uses=("settled", "new"),
)


@pytest.fixture
def machine(lab: Lab, update_server: UpdateServer) -> Iterator[Machine[Upgradable]]:
    """Yield an installed system whose slots are the same after the test as before."""
    machine: Machine[Upgradable] = lab.fork(points.settled, services=[update_server])
    machine.os.trust(lab.ca.pem)
    slots = machine.os.slots()
    # Nothing is written in a new fork. With --fresh the first boot was found good and renamed its entry.
    written = [] if machine.origin is not None else machine.os.slots_written()
    yield machine
    assert machine.os.slots() == slots
    assert machine.os.slots_written() == written


def refused(machine: Machine[Upgradable], source: str) -> str:
    """Expect the system to refuse, and return its reason."""
    with pytest.raises(errors.UpgradeRefusedError) as caught:
        machine.os.upgrade(source)
    return caught.value.what


@pytest.mark.tier(
    "gate",
    cost=14,
    catches="bytes that were not signed, or a server that is not trusted, taken as they come",
    uses=("settled", "new"),
)
@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("root", faults.FlippedBit()),
        ("root", faults.CutOff(percent=50)),
        pytest.param("kernel", faults.WrongLength(by=1000), marks=NIGHTLY),
        pytest.param("kernel", faults.ServerError(503), marks=NIGHTLY),
        (None, faults.ExpiredCertificate()),
        (None, faults.UnknownCa()),
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
    machine: Machine[Upgradable],
    update_server: UpdateServer,
    publish: Address,
    releases: Releases,
    file: UpdateFile | None,
    fault: faults.Fault,
) -> None:
    """The server sends something else than was signed, or is not the server that the system trusts."""
    source = publish(releases.new)
    if file is None:
        active = update_server.fault(fault)
    else:
        active = update_server.fault(f"/{releases.new}/{machine.os.update_files[file]}", fault)
    with active:
        assert refused(machine, source)
        assert active.hits, "no request met the fault"


@pytest.mark.tier(
    "gate",
    cost=12,
    catches="a signature that is present and not compared",
    uses=("settled", "new", "newest"),
)
def test_a_wrong_signature(
    machine: Machine[Upgradable],
    update_server: UpdateServer,
    publish: Address,
    update_files: Callable[[str], list[Path]],
    releases: Releases,
) -> None:
    """The signature belongs to another version."""
    pattern = machine.os.update_files.get("signature")
    if pattern is None:
        pytest.skip(f"the updates of image {releases.name} have no signature of their own")
    source = publish(releases.new)
    (other,) = [path for path in update_files(releases.newest) if fnmatch(path.name, pattern)]
    (right,) = [path for path in update_files(releases.new) if fnmatch(path.name, pattern)]
    update_server.publish(other.read_bytes(), f"{releases.new}/{right.name}")
    assert machine.os.says("signature", refused(machine, source))


@pytest.mark.tier(
    "gate", cost=12, catches="a valid signature by any key at all", uses=("settled", "new")
)
def test_a_signature_by_a_stranger(
    lab: Lab,
    machine: Machine[Upgradable],
    update_server: UpdateServer,
    publish: Address,
    releases: Releases,
) -> None:
    """The signature is valid, but by a key that the system does not know."""
    pattern = machine.os.update_files.get("signature")
    files = lab.artifacts(version=releases.new)
    if pattern is None or "stranger" not in files:
        pytest.skip(
            f"image {releases.name} has no artifact 'stranger': see docs/how-to/profiles.md"
        )
    source = publish(releases.new)
    update_server.publish(files["stranger"], f"{releases.new}/{pattern}")
    assert machine.os.says("signature", refused(machine, source))


@pytest.mark.tier(
    "gate",
    cost=14,
    catches="an upgrade that fills the state and leaves it full or the slot torn",
    uses=("settled", "new"),
)
def test_no_space(
    machine: Machine[Upgradable],
    publish: Address,
    update_files: Callable[[str], list[Path]],
    releases: Releases,
) -> None:
    """The update does not fit."""
    source = publish(releases.new)
    size = sum(path.stat().st_size for path in update_files(releases.new))
    machine.os.fill_state(keep=size // 4)
    assert machine.os.says("space", refused(machine, source))


@pytest.mark.tier(
    "gate", cost=10, catches="a policy of the machine that is not read", uses=("settled", "new")
)
def test_older_than_allowed(
    machine: Machine[Upgradable], publish: Address, releases: Releases
) -> None:
    """A policy of the machine sets the oldest version allowed."""
    machine.os.allow_from(releases.newest)
    assert machine.os.says("older", refused(machine, publish(releases.new)))
