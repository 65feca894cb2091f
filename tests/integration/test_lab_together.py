"""Machines of one lab: forks that start together on a segment; machines powered on again; slow disks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness import MIB, Disk, Lab, Machine, Nic, errors, state
from harness.spec import KIB


@state
def on_lan(lab: Lab) -> Machine[Any]:
    """A micro guest with an interface on the segment ``lan``, logged in."""
    machine = lab.boot(
        "micro",
        name="node",
        memory=128 * MIB,
        nics=(Nic(), Nic.on("lan")),
        segments=[lab.segment(capture=False)],
    )
    machine.os.login()
    return machine


def configure(machine: Machine[Any], address: str) -> None:
    """Give the second interface an address."""
    machine.succeed(f"ip link set eth1 up; ip addr add {address}/24 dev eth1")


def test_forks_that_start_together_meet_on_their_segment(lab: Lab) -> None:
    here = lab.with_image("micro")
    segment = lab.segment()
    first, second = here.fork_together(on_lan, ["node-1", "node-2"], segments=[segment])
    assert (first.name, second.name) == ("node-1", "node-2")
    configure(first, "10.9.0.1")
    configure(second, "10.9.0.2")
    first.succeed("ping -c 1 -W 60 10.9.0.2")
    with segment.partition(first, second):
        second.fail("ping -c 1 -W 1 10.9.0.1")
    second.succeed("ping -c 1 -W 60 10.9.0.1")
    # The same names once more, on a segment of their own.
    other = lab.segment("lan", seed=1)
    (again,) = here.fork_together(on_lan, ["node-1"], segments=[other])
    assert again.name == "node-1"
    assert again.evidence != first.evidence
    configure(again, "10.9.0.3")
    again.fail("ping -c 1 -W 1 10.9.0.2")


def test_one_that_does_not_start_ends_the_others(lab: Lab) -> None:
    here = lab.with_image("micro")
    segment = lab.segment()
    with pytest.raises(errors.UsageError, match="has a machine"):
        here.fork_together(on_lan, ["node-1", "node-1"], segments=[segment])
    assert not segment.counters().up
    # The room that was granted is free again, and so is the name.
    (machine,) = here.fork_together(on_lan, ["node-1"], segments=[segment])
    assert machine.running


def test_a_machine_is_powered_on_again_with_its_disks_and_its_name(lab: Lab) -> None:
    machine = lab.boot(
        "micro", name="node", memory=128 * MIB, disks=[Disk("data", size=8 * MIB)], nics=(Nic(),)
    )
    machine.os.login()
    machine.os.login()  # the one before is logged out
    device = "/dev/vda"
    machine.succeed(f"echo kept | dd of={device} conv=notrunc,fsync")
    address = machine.succeed("cat /sys/class/net/eth0/address")
    with pytest.raises(errors.UsageError, match="still runs"):
        machine.power_on()
    for number in (2, 3):
        machine.power_cut()
        machine = machine.power_on()
        assert machine.name == "node"
        assert machine.evidence.name == f"node-start{number}"
        assert machine.console.logged_in
        assert machine.succeed(f"dd if={device} bs=4 count=1") == "kept"
        assert machine.succeed("cat /sys/class/net/eth0/address") == address


def test_a_slow_disk_takes_its_time_and_is_fast_again(lab: Lab) -> None:
    machine = lab.boot("micro", memory=128 * MIB, disks=[Disk("data", size=8 * MIB)])
    machine.os.login()

    def read(count: int) -> float:
        """Return the seconds of reads of 64 KiB that were not read before."""
        machine.succeed("echo 3 > /proc/sys/vm/drop_caches")
        began = time.monotonic()
        machine.succeed(f"dd if=/dev/vda of=/dev/null bs=64k count={count}")
        return time.monotonic() - began

    with pytest.raises(errors.UsageError, match="a limit above 0"), machine.slow_disk("data"):
        pass
    with machine.slow_disk("data", rate=64 * KIB):
        # QEMU lets what a second may move pass at once.
        assert read(6) > 3
    with machine.slow_disk("data", requests=1):
        machine.power_cut()
    machine = machine.power_on(wait=False)
    machine.os.login()
    with machine.slow_disk("data", rate=1):
        pass
    machine.succeed("dd if=/dev/vda of=/dev/null bs=64k count=100", deadline=60)
