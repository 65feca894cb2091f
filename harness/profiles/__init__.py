"""What Harness knows of each OS family: one module a family, registered by name."""

from __future__ import annotations

import importlib
import pkgutil

from harness.errors import UnknownNameError
from harness.profiles.base import Profile


def names() -> list[str]:
    """Return the names of all profiles."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name != "base")


def find(name: str) -> type[Profile]:
    """Return the profile called ``name``: the class ``Profile`` subclass of its module.

    Raises:
        UnknownNameError: if there is none; lists the near ones.
    """
    if name not in names():
        raise UnknownNameError("profile", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Profile) and value.name == name:
            return value
    raise UnknownNameError("profile", name, names())


__all__ = ["Profile", "find", "names"]
