"""Two guests on a segment: they reach each other, and nothing else does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Lab
from harness.errors import SegmentError, UsageError
from harness.machine import Machine
from harness.network import Addresses, Segment
from harness.spec import Nic

ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segment]:
    with Segment("lan", folder=tmp_path_factory.mktemp("lan"), seed=1, capture=True) as segment:
        yield segment


@pytest.fixture(scope="module")
def pair(shared_lab: Lab, lan: Segment) -> tuple[Machine, Machine]:
    """Two machines, each with SSH to the host and an address on the segment."""
    return boot_pair(shared_lab, lan)


def boot_pair(lab: Lab, lan: Segment) -> tuple[Machine, Machine]:
    """Start two machines on a segment."""
    left, right = (boot(lab, name, lan) for name in ADDRESSES)
    for machine in (left, right):
        machine.wait_ready()
        address(machine)
    return left, right


def boot(lab: Lab, name: str, segment: Segment) -> Machine:
    nics = [Nic(), Nic.on(segment.name)]
    return lab.boot("micro", name=name, nics=nics, segments=[segment])


def address(machine: Machine) -> None:
    """Give a machine its address on the segment."""
    mac = machine.spec.mac(machine.spec.nics[1])
    machine.succeed(
        f"for i in /sys/class/net/*; do if grep -q {mac} $i/address; then"
        f" ip address add {ADDRESSES[machine.name]}/24 dev ${{i##*/}};"
        " ip link set ${i##*/} up; fi; done"
    )


def ping(machine: Machine, other: str, count: int = 3) -> str:
    """Return busybox' summary."""
    command = f"ping -c {count} -i 0.2 -W 2 {ADDRESSES[other]} | grep 'packets transmitted' || true"
    return machine.execute(command).stdout.strip()


def test_guests_reach_each_other_until_they_are_parted(
    pair: tuple[Machine, Machine], lan: Segment
) -> None:
    left, right = pair
    assert ping(left, "right") == "3 packets transmitted, 3 packets received, 0% packet loss"
    with lan.partition(left, right):
        assert "100% packet loss" in ping(left, "right")
        assert left.succeed("echo by SSH") == "by SSH\n"
    assert " 0% packet loss" in ping(right, "left")
    with lan.partition(left, right, one_way=True):
        assert "100% packet loss" in ping(right, "left")  # the request arrives, the answer does not
    assert lan.counters().links["left", "right"].cut >= 6


def test_a_slow_link_slows_the_guests(pair: tuple[Machine, Machine], lan: Segment) -> None:
    left, _ = pair
    lan.link("left", "right").impair(delay=0.3)
    times = left.succeed(f"ping -c 3 -W 5 {ADDRESSES['right']} | grep min/avg/max")
    lan.heal()
    least = float(times.rpartition("=")[2].split("/")[0])
    assert least >= 600  # both ways


def test_a_file_arrives_whole_over_a_bad_link(pair: tuple[Machine, Machine], lan: Segment) -> None:
    left, right = pair
    lan.link(left, right).impair(loss=0.02, corrupt=0.02, duplicate=0.02, reorder=0.02)
    # With an open standard input: at its end busybox' nc would end the sender, too.
    right.succeed("(sleep 600 | nc -l -p 9000 > /tmp/got) >/dev/null 2>&1 &")
    right.wait_for_port(9000)
    left.succeed("dd if=/dev/urandom of=/tmp/sent bs=1k count=512 2>/dev/null")
    left.succeed(f"nc {ADDRESSES['right']} 9000 < /tmp/sent")
    lan.heal()
    assert right.succeed("sha256sum < /tmp/got") == left.succeed("sha256sum < /tmp/sent")
    link = lan.counters().links["left", "right"]
    assert link.lost and link.corrupted and link.duplicated and link.reordered


def test_a_machine_comes_back_to_its_port(lab: Lab, tmp_path: Path) -> None:
    with Segment("own", folder=tmp_path) as segment:
        left, right = boot_pair(lab, segment)
        assert " 0% packet loss" in ping(left, "right")
        segment.link("left", "right").impair(duplicate=1)
        right.power_cut()
        with lab.child("again", folder=tmp_path / "again") as second:
            right = boot(second, "right", segment).wait_ready()
            address(right)
            # The port has its faults still.
            assert "duplicates" in ping(left, "right")
            assert segment.ports == ("left", "right")


def test_guests_get_addresses_and_names(lab: Lab, tmp_path: Path) -> None:
    addresses = Addresses()
    with Segment("own", folder=tmp_path, addresses=addresses) as segment:
        machines = [boot(lab, name, segment) for name in ADDRESSES]
        for machine in machines:
            machine.wait_ready()
        left, right = machines
        mine = segment.address(right)
        right.wait_until_succeeds(f"ip address | grep -qF 'inet {mine} '")
        left.wait_until_succeeds(f"ip address | grep -qF 'inet {segment.address(left)} '")
        assert f"Address: {mine.ip}" in left.succeed(f"nslookup right.lan {addresses.station.ip}")
        assert " 0% packet loss" in left.succeed(f"ping -c 2 {mine.ip}")
        assert " 0% packet loss" in left.succeed(f"ping -c 2 {addresses.station.ip}")
        assert "0% packet loss" not in left.execute("ping -c 1 -W 1 192.0.2.1").stdout
        # By the router's advertisement, of the prefix and the machine's own MAC address.
        global_ = "ip -6 address show scope global | sed -n 's/.*inet6 \\(fd77:[^/]*\\).*/\\1/p'"
        right.wait_until_succeeds(f'test -n "$({global_})"')
        left.wait_until_succeeds(f"ping6 -c 1 {right.succeed(global_).split()[0]}")


def test_a_segment_that_dies_fails_its_machines(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is on segment lan, which is not there"):
        lab.boot("micro", name="lost", nics=[Nic(), Nic.on("lan")])
    with Segment("dies", folder=tmp_path, scope=lab.scope) as segment:
        machine = boot(lab, "alone", segment).wait_ready()
        os.kill(segment.pid, signal.SIGKILL)
        with pytest.raises(SegmentError, match="has ended under its machines"):
            machine.console.expect("never printed", 60)
