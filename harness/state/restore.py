"""Lets a fork go on where the saved machine stood still, and makes it differ where it must.

What differs from the siblings: the random pool, which the kernel reseeds by itself when the number of
the VM generation device changes (Linux ``drivers/virt/vmgenid.c``); the clock; the MAC addresses.
What does not is in ``docs/states.md``.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import QmpError, StateError
from harness.qemu import binary
from harness.qemu.argv import Allocations, Ram
from harness.qemu.qmp import Qmp
from harness.spec import MachineSpec
from harness.state.save import Memory, has_ended
from harness.state.snapshot import Snapshot


def allocate(given: Allocations, origin: Snapshot, memory: Memory | None) -> Allocations:
    """Return the allocations of a fork.

    Args:
        given: Those of a machine of the same spec that boots.
        origin: What it is forked from.
        memory: Its RAM, if it has a copy; otherwise it maps the saved RAM privately.
    """
    if origin.cold:
        return given
    ram = given.ram if memory is not None else Ram(origin.ram, private=True)
    return replace(
        given,
        accel=origin.accel,
        cpu_model=origin.cpu_model,
        ram=ram,
        incoming=origin.devices,
    )


def check(origin: Snapshot, accel: str, cpu_model: str) -> None:
    """Raise unless a snapshot can be restored here.

    Args:
        origin: The snapshot.
        accel: What runs guests here.
        cpu_model: What it gives them for a CPU.

    Raises:
        StateError: if it is damaged, or was saved by another QEMU, accelerator or for another CPU.
    """
    if faults := origin.faults():
        raise StateError("the saved machine is damaged", evidence="\n".join(faults))
    version = binary.find(origin.spec.arch).version
    if not origin.cold and version != origin.qemu:
        raise StateError(f"it was saved by QEMU {origin.qemu}, and this is {version}")
    if not origin.cold and (origin.accel, origin.cpu_model) != (accel, cpu_model):
        raise StateError(
            f"it was saved under {origin.accel} with the CPU {origin.cpu_model},"
            f" and here is {accel} with {cpu_model}"
        )


def restore(qmp: Qmp, devices: Path, limit: Deadline) -> None:
    """Load the devices' state into a QEMU that waits for it.

    Raises:
        QmpError, QemuExitedError: if QEMU refuses; its stderr says why.
        WaitTimeoutError: at the deadline.
    """
    capabilities = [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]
    qmp.execute("migrate-set-capabilities", {"capabilities": capabilities}, deadline=limit)
    mark = qmp.mark()
    qmp.execute("migrate-incoming", {"uri": f"file:{devices}"}, deadline=limit)
    ended = qmp.wait(["MIGRATION"], limit, since=mark, accept=has_ended)
    if ended.data["status"] != "completed":
        raise QmpError(f"QEMU could not load {devices}: {ended.data['status']}")


def difference(before: MachineSpec, after: MachineSpec, now: float | None = None) -> str:
    """Return the command, for root's shell, that makes a fork differ from its siblings.

    It needs a POSIX shell, ``date`` and ``ip`` of busybox or of GNU and iproute2.

    Args:
        before: The saved machine's spec.
        after: The fork's.
        now: The time to set, in seconds of the epoch; the host's own by default.
    """
    lines = []
    changed = [
        (before.mac(old), after.mac(new))
        for old, new in zip(before.nics, after.nics, strict=True)
        if before.mac(old) != after.mac(new)
    ]
    if changed:
        cases = "".join(
            f'{old}) ip link set dev "${{i##*/}}" address {new};;' for old, new in changed
        )
        lines.append(
            f"for i in /sys/class/net/*;do read -r a <$i/address;case $a in {cases} esac;done"
        )
    # The clock last: it is as right as the command is late. Whole seconds, for busybox takes no
    # others, and a second process would cost more than the fraction is worth.
    lines.append(f"date -u -s @{round(time.time() if now is None else now)} >/dev/null")
    return "; ".join(lines)
