"""Resumes a fork where the saved machine was paused, and makes it differ from its siblings.

Three things differ: the random pool, which the kernel reseeds by itself when the ID of the VM generation
device changes (Linux ``drivers/virt/vmgenid.c``), and by a command where QEMU has no such device; the
clock; the MAC addresses.
``docs/explanation/states.md`` lists those that stay the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import QmpError, StateError
from harness.qemu import binary
from harness.qemu.argv import Allocations, Ram
from harness.qemu.qmp import Qmp
from harness.spec import MachineSpec
from harness.states.save import Memory, has_ended
from harness.states.snapshot import Snapshot


def allocate(allocations: Allocations, origin: Snapshot, memory: Memory | None) -> Allocations:
    """Return the allocations of a fork.

    Args:
        allocations: The allocations of a machine that boots with the same spec.
        origin: The saved machine.
        memory: RAM of the fork's own: a copy of the saved RAM, or empty for one in the stream.
            Without it, the fork maps the saved RAM privately.
    """
    if origin.cold:
        return allocations
    ram = allocations.ram if memory is not None else Ram(origin.ram, private=True)
    return replace(
        allocations,
        machine=origin.machine,
        accel=origin.accel,
        cpu_model=origin.cpu_model,
        ram=ram,
        incoming=origin.devices,
    )


def check(origin: Snapshot, accel: str, cpu_model: str) -> None:
    """Raise unless a snapshot can be restored here.

    Args:
        origin: The snapshot.
        accel: The accelerator of this host.
        cpu_model: The CPU model that guests get here.

    Raises:
        StateError: The snapshot is damaged, or another version of QEMU, another accelerator or another
            CPU model saved it.
    """
    if faults := origin.faults():
        raise StateError("the saved machine is damaged", evidence="\n".join(faults))
    if origin.streamed:
        return  # from another host; who took it out of its bundle has compared the two
    version = binary.find(origin.spec.arch).version
    if not origin.cold and version != origin.qemu:
        raise StateError(f"it was saved by QEMU {origin.qemu}, and this is {version}")
    if not origin.cold and (origin.accel, origin.cpu_model) != (accel, cpu_model):
        raise StateError(
            f"it was saved under {origin.accel} with the CPU {origin.cpu_model},"
            f" and this host has {accel} with {cpu_model}"
        )


def restore(qmp: Qmp, devices: Path, limit: Deadline, *, streamed: bool = False) -> None:
    """Load the device state into a QEMU that waits for it.

    Args:
        qmp: Its monitor.
        devices: The file.
        limit: When to give up.
        streamed: Whether the file has the RAM, too.

    Raises:
        QmpError, QemuExitedError: QEMU refuses the state; its stderr says why.
        WaitTimeoutError: The deadline passed.
    """
    capabilities = [
        {"capability": "events", "state": True},
        {"capability": "x-ignore-shared", "state": not streamed},
    ]
    qmp.execute("migrate-set-capabilities", {"capabilities": capabilities}, deadline=limit)
    # A guest that has moved to another host announces its addresses five times (qapi/migration.json of
    # QEMU, "announce-rounds"). One in its old place would only be busy with it when it should answer.
    # Without any round, QEMU 10.0.2 crashes when the guest resets its network device (timer_del in
    # hw/net/virtio-net.c, virtio_net_reset).
    qmp.execute("migrate-set-parameters", {"announce-rounds": 1}, deadline=limit)
    mark = qmp.mark()
    qmp.execute("migrate-incoming", {"uri": f"file:{devices}"}, deadline=limit)
    ended = qmp.wait(["MIGRATION"], limit, since=mark, accept=has_ended)
    if ended.data["status"] != "completed":
        raise QmpError(f"QEMU could not load {devices}: {ended.data['status']}")


def differences(
    before: MachineSpec, after: MachineSpec, *, reseed: str | None = None, now: float | None = None
) -> dict[str, str]:
    """Return what has to differ between a fork and its siblings, and the command that sees to it.

    The commands are for root's POSIX shell, in this order. They need ``date`` and ``ip`` of busybox, or
    of GNU coreutils and iproute2.

    Args:
        before: The spec of the saved machine.
        after: The spec of the fork.
        reseed: The command that reseeds the random pool; ``None`` if the kernel does so by itself.
        now: The time to set, in seconds of the epoch; by default the time of the host.
    """
    commands = {}
    if reseed is not None:
        # Before a program draws.
        commands["random pool"] = reseed
    changed = [
        (before.mac(old), after.mac(new))
        for old, new in zip(before.nics, after.nics, strict=True)
        if before.mac(old) != after.mac(new)
    ]
    if changed:
        cases = "".join(
            f'{old}) ip link set dev "${{i##*/}}" address {new}||b=;;' for old, new in changed
        )
        loop = f"for i in /sys/class/net/*;do read -r a <$i/address;case $a in {cases} esac;done"
        commands["MAC addresses"] = f"b=1;{loop};[ $b ]"
    # The clock comes last, since the commands before it take time. busybox takes whole seconds only, and
    # a second process would cost more time than the fraction of a second.
    commands["clock"] = f"date -u -s @{round(time.time() if now is None else now)} >/dev/null"
    return commands


def script(commands: Mapping[str, str]) -> str:
    """Return one command that runs all; it prints the name of each that fails, on a line of its own."""
    steps = ";".join(f"{{ {command};}}||echo '{name}'" for name, command in commands.items())
    # The console's driver prints the first line of a command, and a serial line is slow.
    return f"# this machine is a fork\n{steps}"
