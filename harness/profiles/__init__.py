"""What Harness knows of each OS family: one module a family, registered by name."""

from __future__ import annotations

import importlib
import pkgutil

from harness.errors import UnknownNameError, UsageError
from harness.profiles.base import Profile

_registered: dict[str, type[Profile]] = {}


def register(profile: type[Profile]) -> type[Profile]:
    """Add a profile that lies outside this package; also a class decorator.

    Call it in the ``conftest.py`` of the project that has the profile.

    Raises:
        UsageError: if the name is empty or taken.
    """
    taken = _registered.get(profile.name)
    if not profile.name or profile.name in _own() or taken not in (None, profile):
        raise UsageError(
            f"a profile called {profile.name!r} cannot be registered: no name, or taken"
        )
    _registered[profile.name] = profile
    return profile


def _own() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}


def names() -> list[str]:
    """Return the names of all profiles."""
    return sorted(_own() | set(_registered))


def find(name: str) -> type[Profile]:
    """Return the profile called ``name``: the class ``Profile`` subclass of its module.

    Raises:
        UnknownNameError: if there is none; lists the near ones.
    """
    if name in _registered:
        return _registered[name]
    if name not in names():
        raise UnknownNameError("profile", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Profile) and value.name == name:
            return value
    raise UnknownNameError("profile", name, names())


__all__ = ["Profile", "find", "names", "register"]
