"""The serial console of a guest: every byte is read and logged, and failures end the waits.

Tests need :class:`Console` alone. The package knows nothing of QEMU: a console is built on a
:class:`~harness.console.wire.Wire`.
"""

from __future__ import annotations

from harness.console.console import Console
from harness.console.dialogue import Dialogue
from harness.console.expect import Match
from harness.console.failures import Expected
from harness.console.keys import KEY_NAMES
from harness.console.terminal import Screen
from harness.console.watch import DEFAULT_WATCHERS, Sighting, Watcher, watcher

__all__ = [
    "DEFAULT_WATCHERS",
    "KEY_NAMES",
    "Console",
    "Dialogue",
    "Expected",
    "Match",
    "Screen",
    "Sighting",
    "Watcher",
    "watcher",
]
