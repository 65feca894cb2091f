"""Known failures: ``known.yaml``, what it matches, and whether its entries still occur.

===========  ==================================================================================
``model``    an entry, and what it matches: the signature of a failure, not a test
``load``     reads a file; its faults have ``file:line``
``history``  in which of the kept runs an entry occurred, and in which it could have
===========  ==================================================================================
"""

from harness.known.load import KnownFailures, load
from harness.known.model import Entry, Failure, Subject

__all__ = ["Entry", "Failure", "KnownFailures", "Subject", "load"]
