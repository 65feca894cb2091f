"""Profiles: the knowledge of OS families, one module per family, named by ``image.yaml``.

A project keeps its own profiles beside its images: ``profile: kite.py``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

from typing_extensions import TypeVar

from harness.catalog import Image, Selection
from harness.errors import UnknownNameError, UsageError
from harness.machine.system import Identity, System
from harness.profiles.abilities import (
    ABILITIES,
    CredentialInstallable,
    Installable,
    MultiArch,
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
        return cast(type[P], _only(_load(image.profile_file), str(image.profile_file)))
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


def _load(path: Path) -> ModuleType:
    """Import a profile's file under a unique module name, once per process.

    Two projects may use the same file name. The module is outside ``harness``, so changes to it
    invalidate cached states as changes to a test do.
    """
    path = path.resolve()
    name = f"profile_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python module", hint="rename it to NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"the profile {path} cannot be loaded: {error!r}",
            hint="import it in Python for the full traceback",
        ) from error
    return module


__all__ = [
    "ABILITIES",
    "Account",
    "BootRecord",
    "CredentialInstallable",
    "Identity",
    "Install",
    "Installable",
    "Malformed",
    "MissingWordError",
    "MultiArch",
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
