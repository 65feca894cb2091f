"""The catalogue: ``images/*/image.yaml`` read into frozen models, with errors at ``file:line``.

::

    catalog = load(images_dir())
    selection = catalog.resolve("skiff/core:1", arch="x86_64")
    selection.entry.firmware, selection.image.login.user
"""

from harness.catalog.load import Catalog, load
from harness.catalog.model import (
    CAPABILITIES,
    Arch,
    Artifact,
    Build,
    Console,
    Default,
    Image,
    Login,
    Machine,
    Selection,
    is_capability,
)

__all__ = [
    "CAPABILITIES",
    "Arch",
    "Artifact",
    "Build",
    "Catalog",
    "Console",
    "Default",
    "Image",
    "Login",
    "Machine",
    "Selection",
    "is_capability",
    "load",
]
