"""Upgrades that must not be: each is refused, and the system that runs keeps every byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from harness.errors import UpgradeRefusedError
from harness.machine import Machine
from harness.services import (
    CutOff,
    ExpiredCertificate,
    FlippedBit,
    ServerError,
    UnknownCa,
    UpdateServer,
    WrongLength,
)
from harness.services.faults import Fault
from suites.conftest import Updates

pytestmark = pytest.mark.needs("upgrade", "persistence", "ssh")


@dataclass(frozen=True)
class Case:
    """What is wrong.

    Attributes:
        name: For the report.
        says: What the refusal says, a regular expression.
        fault: A fault of the server, on files of a pattern.
        spoil: What is done to machine and server before.
    """

    name: str
    says: str
    fault: tuple[str, Fault] | None = None
    spoil: Callable[[Machine, Updates, UpdateServer], None] | None = None


def sign_otherwise(machine: Machine, updates: Updates, server: UpdateServer) -> None:
    """Publish a signature by the right key of something else."""
    del machine
    server.publish(updates.folder("3") / "SHA256SUMS.gpg", "2/SHA256SUMS.gpg")


def fill(machine: Machine, updates: Updates, server: UpdateServer) -> None:
    """Leave 30 MB on /var."""
    del updates, server
    machine.succeed(
        machine.os.as_root(
            "fallocate -l $(($(df --output=avail -B1 /var | tail -n 1) - 30000000)) /var/filler"
        )
    )


def set_oldest(machine: Machine, updates: Updates, server: UpdateServer) -> None:
    """Allow nothing older than a version that is not there yet."""
    del updates, server
    machine.os.refuse_older_than("3")


CASES = [
    Case("wrong signature", "signature", spoil=sign_otherwise),
    Case("unknown CA", "certificate|issuer", fault=("*", UnknownCa())),
    Case("expired certificate", "expired", fault=("*", ExpiredCertificate())),
    Case("flipped bit", "not what was signed", fault=("*.raw", FlippedBit())),
    Case("truncated download", "cannot fetch", fault=("*.raw", CutOff(percent=50))),
    Case("wrong length", "cannot fetch", fault=("*.efi", WrongLength(by=1000))),
    Case("server error", "cannot fetch", fault=("*/SHA256SUMS", ServerError(503))),
    Case("no space", "space", spoil=fill),
    Case("older than allowed", "oldest allowed", spoil=set_oldest),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused(
    case: Case, upgradable: Machine, updates: Updates, update_server: UpdateServer
) -> None:
    """The system says why, boots what it booted, and no byte of a slot has changed."""
    machine = upgradable
    source = updates.over_https(update_server, "2")
    if case.spoil is not None:
        case.spoil(machine, updates, update_server)
    slots, before = machine.os.slots(), written(machine)
    with pytest.raises(UpgradeRefusedError, match=case.says):
        if case.fault is None:
            machine.os.upgrade(source)
        else:
            pattern, fault = case.fault
            with update_server.fault(pattern, fault) as injected:
                try:
                    machine.os.upgrade(source)
                finally:
                    assert injected.hits, "the fault was never met"
    assert machine.os.slots() == slots
    assert written(machine) == before


def written(machine: Machine) -> dict[str, str]:
    """Return how many writes each partition of each slot has had since the system booted."""
    partitions = [
        part for slot in machine.os.slots() for part in machine.os.slot_partitions(slot.name)
    ]
    told = machine.succeed(
        "; ".join(f"cat /sys/class/block/{part.removeprefix('/dev/')}/stat" for part in partitions)
    )
    # Writes, merged writes, sectors written; discards follow (kernel documentation, block/stat).
    counts = [" ".join(line.split()[4:7] + line.split()[11:14]) for line in told.splitlines()]
    return dict(zip(partitions, counts, strict=True))


def test_writes_to_a_slot_are_counted(
    upgradable: Machine, updates: Updates, update_server: UpdateServer
) -> None:
    """An upgrade that is not refused writes the slot that does not run, and no other."""
    before = written(upgradable)
    upgradable.os.upgrade(updates.over_https(update_server, "2"))
    after = written(upgradable)
    running, other = (upgradable.os.slot_partitions(name) for name in ("a", "b"))
    assert all(after[part] == before[part] for part in running)
    assert all(after[part] != before[part] for part in other)
