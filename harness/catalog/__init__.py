"""The catalogue: frozen models of ``images/*/image.yaml``; its errors begin with ``file:line``.

::

    catalog = load(bundled("images"))
    selection = catalog.resolve("skiff/core:1", arch="x86_64")
    selection.arch_image.firmware, selection.login.user
"""

from harness.catalog.load import Catalog, load
from harness.catalog.model import (
    CAPABILITIES,
    ArchImage,
    Artifact,
    Build,
    ConsoleSettings,
    Defaults,
    Hardware,
    Image,
    LoginSettings,
    Phase,
    Selection,
    is_capability,
)

__all__ = [
    "CAPABILITIES",
    "ArchImage",
    "Artifact",
    "Build",
    "Catalog",
    "ConsoleSettings",
    "Defaults",
    "Hardware",
    "Image",
    "LoginSettings",
    "Phase",
    "Selection",
    "is_capability",
    "load",
]
