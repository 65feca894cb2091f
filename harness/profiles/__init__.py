"""What Harness knows of each OS family: one module a family, named by ``image.yaml``.

Those of other projects lie beside their images: ``profile: kite.py``.
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

from harness.catalog import Image
from harness.errors import UnknownNameError, UsageError
from harness.profiles.base import Profile
from harness.profiles.terms import (
    Account,
    BootRecord,
    Identity,
    Install,
    Malformed,
    Refusal,
    Slot,
    SlotPart,
    SlotState,
    UpdateFile,
)

_PARTS = {"base", "capabilities", "terms"}
"""Modules of this package that are no profiles; what begins with ``_`` is part of one."""


def names() -> list[str]:
    """Return the names of the profiles that are Harness' own."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(name for name in found - _PARTS if not name.startswith("_"))


def of(image: Image) -> type[Profile]:
    """Return the profile of an image: the one ``Profile`` subclass that its module defines.

    Raises:
        UnknownNameError: if it names none of Harness' own; lists the near ones.
        UsageError: if its file cannot be loaded, or does not have one profile.
    """
    if image.profile_file is not None:
        return _only(_load(image.profile_file), str(image.profile_file))
    if image.profile not in names():
        raise UnknownNameError("profile", image.profile, names())
    return _only(importlib.import_module(f"{__name__}.{image.profile}"), image.profile)


def _only(module: ModuleType, where: str) -> type[Profile]:
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Profile)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        told = ", ".join(value.__name__ for value in found) or "none"
        raise UsageError(
            f"{where} has to define one profile, and has: {told}",
            hint="a class whose base is harness.profiles.Profile; helpers' names begin with _",
        )
    if not found[0].name:
        raise UsageError(
            f"the profile {found[0].__name__} in {where} has no name",
            hint='a class attribute: name = "..."',
        )
    return found[0]


def _load(path: Path) -> ModuleType:
    """Import a file under a name of its own, once per process."""
    path = path.resolve()
    # Two projects may call theirs the same. No part of it is below "harness": its code counts for the
    # keys of states as that of tests does.
    name = f"profile_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python module", hint="call it NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"the profile {path} cannot be loaded: {error!r}") from error
    return module


__all__ = [
    "Account",
    "BootRecord",
    "Identity",
    "Install",
    "Malformed",
    "Profile",
    "Refusal",
    "Slot",
    "SlotPart",
    "SlotState",
    "UpdateFile",
    "names",
    "of",
]
