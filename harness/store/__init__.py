"""The cache of artifacts on a host: built or fetched once, then shared by every run.

::

    store = Store(cache_dir())
    with store.artifacts(selection, progress=print) as artifacts:
        artifacts["live"]  # a path, kept until the end of the block

An entry is named by the digest of all that decides what it is, so it never has to be invalidated.
It is made in a folder of its own and published by one rename: half an entry cannot be seen. Each
entry has two lock files. Who makes or removes it holds one, so that others wait; who uses it shares
the other, so that nobody removes it. They are two, because who waits for a build must not wait for
those who use what was built. The kernel lets go of a lock when its process ends, however it ends.
"""

from harness.store.entry import Artifacts, Entry, Source, State, Wanted, digest_inputs
from harness.store.make import Progress
from harness.store.store import Collected, Store

__all__ = [
    "Artifacts",
    "Collected",
    "Entry",
    "Progress",
    "Source",
    "State",
    "Store",
    "Wanted",
    "digest_inputs",
]
