"""What the words of a profile take and return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Account:
    """Who logs in.

    Attributes:
        user: The name.
        password: The password on the console; empty if there is none.
    """

    user: str
    password: str = ""


@dataclass(frozen=True, slots=True)
class Install:
    """What a user tells an installer.

    Attributes:
        disk: The target, by serial or by path in the guest.
        hostname: The installed system's name.
        user: The account to make; it may become root by sudo.
        key: The account's SSH public key; empty for none.
        password: The account's password on the console; empty for none.
    """

    disk: str
    hostname: str = "harbour"
    user: str = "admin"
    key: str = ""
    password: str = ""


SlotState = Literal["good", "trying", "bad", "empty"]
"""What a boot loader makes of a slot.

``good`` had a good boot last; ``trying`` is new, or booting and not found good yet, with tries left;
``bad`` gets booted no more by itself: out of tries, set aside, or not whole; ``empty`` holds nothing.
"""

SlotPart = Literal["root", "hashes"]
"""A part of a slot: its root file system, or the data that this is verified by."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot holds, and whether it gets booted.

    Attributes:
        name: Such as ``a``.
        version: The version in it; empty if there is none.
        state: See :data:`SlotState`.
        tries_left: How many boots it may still fail; ``None`` where none are counted.
        tries_done: How many boots were tried; ``None`` where none are counted.
    """

    name: str
    version: str
    state: SlotState
    tries_left: int | None = None
    tries_done: int | None = None


@dataclass(frozen=True, slots=True)
class BootRecord:
    """One line of what a system remembers of its boots.

    Attributes:
        time: As the guest wrote it, in UTC (ISO 8601).
        boot_id: The boot, as 32 digits; empty for what is no boot, such as an upgrade.
        version: The version it is about.
        slot: The slot of that.
        tries_left: Tries left then; ``None`` where none were counted.
        outcome: ``started`` (and never heard of again), ``good``, ``unhealthy``; of what is no boot
            ``installed``, ``failed`` (no tries left), ``chosen`` (by a rollback).
    """

    time: str
    boot_id: str
    version: str
    slot: str
    tries_left: int | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells an installed system from another.

    Attributes:
        machine_id: As ``machine-id(5)`` has it, or what the family has in its place.
        hostname: The system's own name.
        host_key: The SSH server's public keys, sorted; empty where there are none.
    """

    machine_id: str
    hostname: str
    host_key: str = ""


UpdateFile = Literal["root", "kernel", "signature"]
"""What a file of an update holds: the root file system, what boots it, what all is signed by."""

Refusal = Literal[
    "signature", "space", "older", "too small", "no such disk", "not confirmed", "the medium"
]
"""Why a system refuses: an upgrade that somebody else signed, that does not fit, that is older than
what runs or than a policy allows; an installation onto a disk that is too small, is not there, that
nobody confirmed, that the installer itself runs from."""

Malformed = Literal["unknown key", "no header", "cut short"]
"""What is wrong with a seed that was spoilt on purpose."""
