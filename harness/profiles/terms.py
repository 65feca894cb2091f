"""The types that the words of a profile take and return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Install:
    """The answers to an installer's questions.

    Attributes:
        disk: The target disk, by serial or by path in the guest.
        hostname: The hostname of the installed system.
        user: The account to create; it can become root by sudo.
        key: The account's SSH public key; empty for none.
        password: The account's password on the console; empty for none.
        cluster: The configuration with which the installed system joins a cluster by itself, from
            :meth:`harness.cluster.Provider.configuration`; empty for none. Only a seed can hold it.
    """

    disk: str
    hostname: str = "harbour"
    user: str = "admin"
    key: str = ""
    password: str = ""
    cluster: str = ""


SlotState = Literal["good", "trying", "bad", "empty"]
"""How a boot loader treats a slot.

``good``: its last boot was good. ``trying``: it is new or booting, was not accepted yet, and has tries
left. ``bad``: the boot loader skips it, because its tries are used up, it was set aside, or it is
incomplete. ``empty``: it holds nothing.
"""

SlotPart = Literal["root", "hashes"]
"""A part of a slot: its root file system, or the hashes that verify it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot of an A/B system: its content and its state.

    Attributes:
        name: The name, such as ``a``.
        version: The version in it; empty if it holds none.
        state: See :data:`SlotState`.
        tries_left: How many more boots may fail; ``None`` if the system counts none.
        tries_done: How many boots were tried; ``None`` if the system counts none.
    """

    name: str
    version: str
    state: SlotState
    tries_left: int | None = None
    tries_done: int | None = None


@dataclass(frozen=True, slots=True)
class BootRecord:
    """One line of the log that a system keeps of its boots.

    Attributes:
        time: The guest's time in UTC (ISO 8601).
        boot_id: The boot's id, 32 hexadecimal digits; empty for an event such as an upgrade.
        version: The version that the line is about.
        slot: The slot of that version.
        tries_left: The tries left at that time; ``None`` if the system counted none.
        outcome: Of a boot: ``started`` (no later sign of life), ``good``, ``unhealthy``. Of another
            event: ``installed``, ``failed`` (no tries left), ``chosen`` (by a rollback).
    """

    time: str
    boot_id: str
    version: str
    slot: str
    tries_left: int | None
    outcome: str


UpdateFile = Literal["root", "kernel", "signature"]
"""The content of an update's file: the root file system, its kernel, the signature over all files."""

Refusal = Literal[
    "signature",
    "space",
    "older",
    "architecture",
    "too small",
    "no such disk",
    "not confirmed",
    "the medium",
    "code",
]
"""Why a system refuses.

An upgrade: ``signature``, it is wrong; ``space``, there is too little; ``older``, the version is
older than the running one or than a policy allows; ``architecture``, it is for another one. An
installation: ``too small``, ``no such disk``, ``the medium`` (the installer
runs from that disk), ``not confirmed`` (by the user), ``code`` (not the one on the screen).
"""

Malformed = Literal["unknown key", "no header", "cut short"]
"""The fault in a seed that a test spoils on purpose."""
