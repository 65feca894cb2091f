"""The cache: one protocol for everything that a host keeps and that many processes share.

An entry is built once, in a folder of its own, and published by one rename: no process ever sees half
an entry. Each entry has two lock files. The process that builds or removes an entry holds the first one
alone, so that others wait. Every process that uses an entry shares the second one, so that no process
removes it. With a single lock, a process that waits for a build would also wait for all users of the
result. The kernel releases a lock when its process ends, ``kill -9`` included.

:class:`Cache` has two users: :mod:`harness.artifacts` and :mod:`harness.states`.
"""

from harness.cache.cache import Cache
from harness.cache.entry import Collected, Entry, Lease, Say, Status, quiet
from harness.cache.layout import Layout

__all__ = ["Cache", "Collected", "Entry", "Layout", "Lease", "Say", "Status", "quiet"]
