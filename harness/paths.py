"""Where Harness keeps things on the host, and every environment variable that it reads.

This is the only module that reads the environment; everything else is told by files and options.

===================  ==============================================================
``HARNESS_CACHE``    Folder of the cache of artifacts, states and logs.
``XDG_CACHE_HOME``   Base of the cache where ``HARNESS_CACHE`` is not set
                     (XDG Base Directory Specification 0.8); ``~/.cache`` by default.
===================  ==============================================================

Build scripts of images are programs of their own and may read more: those here read
``HARNESS_DEBIAN_MIRROR``, the address of a Debian archive where the host's apt knows none.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder of the cache; it may not exist yet.

    A relative path is taken from the working folder for ``HARNESS_CACHE``, and ignored for
    ``XDG_CACHE_HOME``, as its specification wants it.
    """
    if own := os.environ.get("HARNESS_CACHE"):
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ".cache"
    return base / "harness"


def catalog_dirs(*further: str | Path) -> tuple[Path, ...]:
    """Return the folders of images: the checkout's own, where there is one, and further ones."""
    own = images_dir()
    return (*((own,) if own.is_dir() else ()), *(Path(each).absolute() for each in further))


def images_dir() -> Path:
    """Return the catalogue of the checkout that this module lies in; it may not exist."""
    return Path(__file__).resolve().parent.parent / "images"
