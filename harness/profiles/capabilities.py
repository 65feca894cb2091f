"""Which words of a profile go with which capabilities of an image."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Final

from harness.profiles.base import Profile

WORDS: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    ("verity",): ("verified",),
    ("install",): ("install", "version", "slot"),
    ("install-unattended",): ("wait_installed",),
    ("install-unattended", "seed"): ("seed", "malformed_seed", "install_from"),
    ("install-unattended", "credentials"): ("install_credentials",),
    ("upgrade",): (
        *("version", "slot", "slots", "boot_record", "trust", "upgrade"),
        *("update_files", "slots_written", "fill_state", "allow_from"),
    ),
    ("rollback",): ("rollback", "choose_entry", "fall_back", "damage"),
    ("recovery",): (
        *("version", "slot", "slots", "choose_entry"),
        *("boot_recovery", "wait_recovery", "repair", "damage", "damage_state"),
    ),
    ("reset",): ("slot", "reset"),
}
"""The words that the suites use of an image that declares these capabilities, besides those that
:class:`~harness.profiles.base.Profile` has for all. A test compares them with the suites."""


def words(capabilities: Collection[str]) -> set[str]:
    """Return the words that go with capabilities."""
    return {word for key, those in WORDS.items() if set(key) <= set(capabilities) for word in those}


def lacking(profile: type[Profile], capabilities: Collection[str]) -> list[str]:
    """Return the words that go with capabilities and that the profile does not have, sorted."""

    def defined(word: str) -> object:
        # What getattr() gives of a class method is another object each time.
        return inspect.getattr_static(profile, word)

    return sorted(
        word
        for word in words(capabilities)
        if defined(word) is inspect.getattr_static(Profile, word)
    )
