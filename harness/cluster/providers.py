"""The kinds of clusters that Harness knows, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, cast

from harness.catalog import Selection
from harness.cluster.provider import Provider
from harness.errors import UnknownNameError, UsageError

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
    """
    if image.cluster is None:
        raise UsageError(
            f"image {image.name} does not form clusters",
            hint=f"cluster: {{provider: NAME, variant: NAME}} in {image.path}",
        )
    return of(image.cluster.provider)
