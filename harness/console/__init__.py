"""The serial console of a guest: drained always, logged whole, watched for ruin.

:class:`Console` is all that tests need; it knows nothing of QEMU, only a connected socket.
"""

from __future__ import annotations

from harness.console.console import Console
from harness.console.expect import Match
from harness.console.failures import Expected
from harness.console.keys import KEY_NAMES
from harness.console.shell import Result
from harness.console.terminal import Screen
from harness.console.watch import DEFAULT_WATCHERS, Sighting, Watcher, watcher

__all__ = [
    "DEFAULT_WATCHERS",
    "KEY_NAMES",
    "Console",
    "Expected",
    "Match",
    "Result",
    "Screen",
    "Sighting",
    "Watcher",
    "watcher",
]
