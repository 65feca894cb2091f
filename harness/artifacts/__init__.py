"""The artifacts of images: built or fetched once per host, then shared by every run.

::

    store = Store(cache_dir())
    with store.artifacts(selection, say=print) as artifacts:
        artifacts["live"]  # a path, valid until the end of the block

The cache itself is :mod:`harness.cache`.
"""

from harness.artifacts.entry import Artifacts, File, Manifest, Recipe, Source, digest_inputs
from harness.artifacts.store import Store

__all__ = ["Artifacts", "File", "Manifest", "Recipe", "Source", "Store", "digest_inputs"]
