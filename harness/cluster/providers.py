"""The kinds of clusters that Harness knows, by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from harness.catalog import Selection
from harness.cluster.provider import Provider
from harness.errors import UnknownNameError, UsageError
from harness.modules import load_file

_HOMES: Final[Mapping[str, tuple[str, str]]] = {"etcd": ("harness.cluster.etcd", "Etcd")}


def names() -> tuple[str, ...]:
    """Return the names that an ``image.yaml`` can give."""
    return tuple(_HOMES)


def of(name: str) -> type[Provider]:
    """Return the provider of a name.

    Raises:
        UnknownNameError: There is none; lists the names.
    """
    if name not in _HOMES:
        raise UnknownNameError("provider", name, _HOMES)
    module, kind = _HOMES[name]
    return cast(type[Provider], getattr(importlib.import_module(module), kind))


def of_image(image: Selection) -> type[Provider]:
    """Return the provider of an image's clusters.

    Raises:
        UsageError: The image forms none.
        UnknownNameError: Its ``image.yaml`` names one that does not exist.
        UsageError: Its ``image.yaml`` names a file that defines none, or several.
    """
    if image.cluster is None:
        raise UsageError(
            f"image {image.name} does not form clusters",
            hint=f"cluster: {{provider: NAME, variant: NAME}} in {image.path}",
        )
    if image.cluster.provider.endswith(".py"):
        return _only(image.definition.folder / image.cluster.provider)
    return of(image.cluster.provider)


def _only(path: Path) -> type[Provider]:
    """Return the provider that a file defines: the one class with all words of the protocol."""
    module = load_file(path, "provider")
    words = {word for word in vars(Provider) if not word.startswith("_")} | {"name", "ports"}
    providers = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
        and words <= set(dir(value))
    ]
    if len(providers) != 1:
        listed = ", ".join(provider.__name__ for provider in providers) or "none"
        raise UsageError(
            f"{path} must define exactly one provider; it defines: {listed}",
            hint=f"a class with all words of harness.cluster.Provider: {', '.join(sorted(words))}",
        )
    return cast(type[Provider], providers[0])
