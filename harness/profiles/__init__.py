"""Profiles: the knowledge of OS families, one module per family, named by ``image.yaml``.

A project keeps its own profiles beside its images: ``profile: kite.py``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import cast

from typing_extensions import TypeVar

from harness.catalog import Image, Selection
from harness.errors import UnknownNameError, UsageError
from harness.machine.system import Identity, System
from harness.modules import load_file
from harness.profiles.abilities import (
    ABILITIES,
    Clustered,
    CredentialInstallable,
    Installable,
    MultiArch,
    Pairable,
    Recoverable,
    Resettable,
    Rollbackable,
    SeedInstallable,
    Slotted,
    UnattendedInstallable,
    Upgradable,
    Verified,
    Versioned,
    abilities_of,
    lacking,
)
from harness.profiles.base import MissingWordError, Profile
from harness.profiles.terms import (
    BootRecord,
    Install,
    Malformed,
    Refusal,
    Slot,
    SlotPart,
    SlotState,
    UpdateFile,
)
from harness.spec import Account

P = TypeVar("P", bound=System, default=Profile)
"""A profile: the protocol that the caller's annotation names, or the base class."""

_PARTS = {"abilities", "base", "terms"}
"""Modules of this package that are not profiles; neither are those whose names begin with ``_``."""


def names() -> list[str]:
    """Return the names of the built-in profiles."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(name for name in modules - _PARTS if not name.startswith("_"))


def of(image: Image | Selection) -> type[P]:
    """Return the profile of an image: the one subclass of ``Profile`` that its module defines.

    An annotation chooses the ability for mypy: ``profile: type[SeedInstallable] = profiles.of(image)``.
    Nothing checks it at run time; ``@pytest.mark.needs("install-unattended", "seed")`` does that.

    Raises:
        UnknownNameError: There is no built-in profile of this name; the message lists similar names.
        UsageError: The profile's file cannot be loaded, or does not define exactly one profile.
    """
    if image.profile_file is not None:
        return cast(
            type[P], _only(load_file(image.profile_file, "profile"), str(image.profile_file))
        )
    if image.profile not in names():
        raise UnknownNameError("profile", image.profile, names())
    module = importlib.import_module(f"{__name__}.{image.profile}")
    return cast(type[P], _only(module, image.profile))


def _only(module: ModuleType, where: str) -> type[Profile]:
    profiles = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Profile)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(profiles) != 1:
        listed = ", ".join(profile.__name__ for profile in profiles) or "none"
        raise UsageError(
            f"{where} must define exactly one profile; it defines: {listed}",
            hint="write one subclass of harness.profiles.Profile; begin the names of helpers with _",
        )
    if not profiles[0].name:
        raise UsageError(
            f"the profile {profiles[0].__name__} in {where} has no name",
            hint='add a class attribute: name = "..."',
        )
    return profiles[0]


__all__ = [
    "ABILITIES",
    "Account",
    "BootRecord",
    "Clustered",
    "CredentialInstallable",
    "Identity",
    "Install",
    "Installable",
    "Malformed",
    "MissingWordError",
    "MultiArch",
    "Pairable",
    "Profile",
    "Recoverable",
    "Refusal",
    "Resettable",
    "Rollbackable",
    "SeedInstallable",
    "Slot",
    "SlotPart",
    "SlotState",
    "Slotted",
    "System",
    "UnattendedInstallable",
    "UpdateFile",
    "Upgradable",
    "Verified",
    "Versioned",
    "abilities_of",
    "lacking",
    "names",
    "of",
]
