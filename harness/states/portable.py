"""What can resume where: a machine that was saved on another host.

==============  =============================================================================
saved under     resumes under
==============  =============================================================================
TCG             TCG, by the same or a newer QEMU that has the machine type
KVM             KVM, by the same or a newer QEMU, on a CPU of the same vendor, if the guest was
                given a named CPU model: ``host`` and ``max`` are whatever the host's CPU is
==============  =============================================================================

A machine type with a version (``pc-q35-10.0``) is the same to the guest in each QEMU that has it
(``docs/about/deprecated`` and ``docs/devel/migration/compatibility`` of QEMU). QEMU promises nothing for
an older one. A model such as ``max`` may have more features in a newer QEMU: under TCG they are there
when the guest looks for them next, at its next boot.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from harness.errors import BundleError
from harness.states.snapshot import Snapshot

_PLAIN = re.compile(r"[A-Za-z0-9_.+=,-]{1,200}")
_MACHINE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Place:
    """What a machine depends on.

    Attributes:
        qemu: The version of QEMU.
        accel: ``kvm`` or ``tcg``.
        cpu_vendor: The vendor of the host's CPU.
    """

    qemu: str
    accel: str
    cpu_vendor: str


def refusal(saved: Snapshot, there: Place, here: Place, machine_types: Collection[str]) -> str:
    """Return why a machine cannot resume on this host; empty if it can.

    Args:
        saved: The machine.
        there: The place where it was saved.
        here: This host.
        machine_types: The machine types of this host's QEMU.
    """
    if not _MACHINE.fullmatch(saved.machine) or not _PLAIN.fullmatch(saved.cpu_model):
        return "its machine type or its CPU model is no name"
    if saved.cold:
        return ""
    if saved.accel != here.accel:
        return f"it ran under {saved.accel}, and guests run under {here.accel} here"
    if _version(here.qemu) < _version(saved.qemu):
        return f"it was saved by QEMU {saved.qemu}, and this host has the older {here.qemu}"
    if saved.machine not in machine_types:
        return f"QEMU {here.qemu} of this host has no machine type {saved.machine}"
    if saved.accel == "kvm":
        model = saved.cpu_model.split(",")[0]
        if model in ("host", "max"):
            return f"its CPU model {model} is that of the host where it was saved"
        if there.cpu_vendor != here.cpu_vendor:
            return (
                f"it was saved on a CPU of {there.cpu_vendor or 'an unknown vendor'}, and this host's"
                f" is of {here.cpu_vendor or 'an unknown vendor'}"
            )
    return ""


def check(saved: Snapshot, there: Place, here: Place, machine_types: Collection[str]) -> None:
    """Raise unless a machine can resume on this host.

    Raises:
        BundleError: It cannot; says why.
    """
    if why := refusal(saved, there, here, machine_types):
        raise BundleError(f"machine {saved.spec.name} cannot be resumed here: {why}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
