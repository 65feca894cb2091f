"""Harness boots built operating-system images in QEMU and decides whether to accept them.

These are the public names; everything else is internal. Each is loaded when it is first used, so that
``import harness`` takes no time. ``docs/reference/api.md`` documents them.
"""

from __future__ import annotations

import importlib

# Importing typing would take longer than all the rest; type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness import errors, points
    from harness.catalog import Selection
    from harness.cluster import Cluster, History
    from harness.errors import HarnessError, Verdict
    from harness.lab import Lab
    from harness.machine import Machine
    from harness.machine.recording import Recording
    from harness.profiles import (
        BootRecord,
        CredentialInstallable,
        Identity,
        Install,
        Installable,
        Malformed,
        MultiArch,
        Pairable,
        Profile,
        Recoverable,
        Refusal,
        Resettable,
        Rollbackable,
        SeedInstallable,
        Slot,
        UpdateFile,
        Upgradable,
        Verified,
    )
    from harness.profiles import of as profile_of
    from harness.pytest_plugin.fixtures import Defect, ForArches, Publish, Releases, UpdateFiles
    from harness.pytest_plugin.sweeps import Cut, Recorder
    from harness.result import Result
    from harness.services import Ca, Registry, UpdateServer, faults
    from harness.spec import GIB, MIB, Account, ConsoleDevice, Disk, GuestForward, Nic, Tpm
    from harness.states import Snapshot, State, state

_HOMES = {
    "harness.catalog": ("Selection",),
    "harness.cluster": ("Cluster", "History"),
    "harness.errors": ("HarnessError", "Verdict"),
    "harness.lab": ("Lab",),
    "harness.machine": ("Machine",),
    "harness.machine.recording": ("Recording",),
    "harness.profiles": (
        "BootRecord",
        "CredentialInstallable",
        "Identity",
        "Install",
        "Installable",
        "Malformed",
        "MultiArch",
        "Profile",
        "Pairable",
        "Recoverable",
        "Refusal",
        "Resettable",
        "Rollbackable",
        "SeedInstallable",
        "Slot",
        "UpdateFile",
        "Upgradable",
        "Verified",
    ),
    "harness.pytest_plugin.fixtures": ("Defect", "ForArches", "Publish", "Releases", "UpdateFiles"),
    "harness.pytest_plugin.sweeps": ("Cut", "Recorder"),
    "harness.result": ("Result",),
    "harness.services": ("Ca", "Registry", "UpdateServer"),
    "harness.spec": (
        "GIB",
        "MIB",
        "Account",
        "ConsoleDevice",
        "Disk",
        "GuestForward",
        "Nic",
        "Tpm",
    ),
    "harness.states": ("Snapshot", "State", "state"),
}
_MODULES = {
    "errors": "harness.errors",
    "faults": "harness.services.faults",
    "points": "harness.points",
}
_OTHER_NAMES = {"profile_of": ("harness.profiles", "of")}

_WHERE = (
    {name: (home, name) for home, names in _HOMES.items() for name in names}
    | {name: (module, "") for name, module in _MODULES.items()}
    | _OTHER_NAMES
)

__all__ = [
    "GIB",
    "MIB",
    "Account",
    "BootRecord",
    "Ca",
    "Cluster",
    "ConsoleDevice",
    "CredentialInstallable",
    "Cut",
    "Defect",
    "Disk",
    "ForArches",
    "GuestForward",
    "HarnessError",
    "History",
    "Identity",
    "Install",
    "Installable",
    "Lab",
    "Machine",
    "Malformed",
    "MultiArch",
    "Nic",
    "Pairable",
    "Profile",
    "Publish",
    "Recorder",
    "Recording",
    "Recoverable",
    "Refusal",
    "Registry",
    "Releases",
    "Resettable",
    "Result",
    "Rollbackable",
    "SeedInstallable",
    "Selection",
    "Slot",
    "Snapshot",
    "State",
    "Tpm",
    "UpdateFile",
    "UpdateFiles",
    "UpdateServer",
    "Upgradable",
    "Verdict",
    "Verified",
    "errors",
    "faults",
    "points",
    "profile_of",
    "state",
]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use.

    Raises:
        AttributeError: There is no such name.
    """
    if name not in _WHERE:
        raise AttributeError(f"module 'harness' has no public name {name!r}")
    home, attribute = _WHERE[name]
    module = importlib.import_module(home)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_WHERE)
