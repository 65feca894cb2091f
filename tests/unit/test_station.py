"""The station of a segment; tshark judges its answers, checksums included."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.network import Addresses, Segment, SegmentState
from harness.network.station import MAC, Station
from tests.programs import need

ADDRESSES = Addresses()
OWN = ADDRESSES.station.ip.packed
CLIENT = b"\x52\x54\x00\x00\x00\x61"
BROADCAST = b"\xff" * 6


def udp(source: bytes, target: bytes, ports: tuple[int, int], content: bytes) -> bytes:
    """Return a packet; its checksums are left out, which UDP allows and the station does not check."""
    datagram = struct.pack(">HHHH", *ports, 8 + len(content), 0) + content
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0)
    return BROADCAST + CLIENT + b"\x08\x00" + header + source + target + datagram


def dhcp(kind: int, options: bytes = b"", current: bytes = bytes(4)) -> bytes:
    """Return a message of a client."""
    head = struct.pack(">BBBBIHH4s12x16s192x", 1, 1, 6, 0, 0x1234, 0, 0x8000, current, CLIENT)
    message = head + b"\x63\x82\x53\x63" + bytes([53, 1, kind]) + options + b"\xff"
    return udp(current, b"\xff" * 4, (68, 67), message)


def dns(name: str, kind: int = 1) -> bytes:
    """Return a query."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">HHHHHH", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0"
    return udp(b"\x0a\x4d\0\x09", OWN, (5000, 53), message + struct.pack(">HH", kind, 1))


def icmpv6(content: bytes) -> bytes:
    """Return a packet of a neighbour."""
    header = struct.pack(">IHBB", 6 << 28, len(content), 58, 255)
    source, target = b"\xfe\x80" + bytes(13) + b"\x61", b"\xff\x02" + bytes(13) + b"\x02"
    return b"\x33\x33\0\0\0\2" + CLIENT + b"\x86\xdd" + header + source + target + content


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Segment]:
    with Segment("lan", folder=tmp_path, capture=True, addresses=ADDRESSES) as segment:
        yield segment


def answers(lan: Segment, *questions: bytes) -> Path:
    """Ask from port node-1, wait for all answers, and return the capture."""
    lan.add_port("node-2")
    with lan.attach("node-1") as end:
        end.settimeout(60)
        for question in questions:
            end.send(question)
            end.recv(4096)
    lan.close()
    assert lan.capture is not None
    return lan.capture


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """Return fields of what the station sent."""
    need("tshark")
    process = subprocess.run(
        [
            *("tshark", "-r", str(path), "-T", "fields"),
            *(word for layer in ("ip", "udp") for word in ("-o", f"{layer}.check_checksum:TRUE")),
            *("-Y", f"eth.src == {MAC.hex(':')} and frame.interface_name == node-1"),
            *(word for field in fields for word in ("-e", field)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in process.stdout.splitlines()]


def test_a_machine_gets_its_address_by_dhcp(lan: Segment) -> None:
    mine = str(lan.address("node-1").ip)
    wish = bytes([50, 4]) + lan.address("node-1").ip.packed
    rows = tshark(
        answers(
            lan,
            dhcp(1),
            dhcp(3, wish + bytes([54, 4]) + OWN),
            dhcp(3, current=lan.address("node-1").ip.packed),
            dhcp(3, bytes([50, 4]) + lan.address("node-2").ip.packed),
            dhcp(8, current=lan.address("node-1").ip.packed),
        ),
        *("dhcp.option.dhcp", "dhcp.ip.your", "dhcp.option.subnet_mask"),
        *("dhcp.option.domain_name_server", "dhcp.option.hostname", "dhcp.option.domain_name"),
        *("dhcp.option.ip_address_lease_time", "ip.dst"),
        *("ip.checksum.status", "udp.checksum.status", "_ws.malformed"),
    )
    granted = ["255.255.0.0", "10.77.0.1", "node-1", "lan"]
    assert rows == [
        ["2", mine, *granted, "3600", "255.255.255.255", "1", "1", ""],
        ["5", mine, *granted, "3600", "255.255.255.255", "1", "1", ""],
        ["5", mine, *granted, "3600", mine, "1", "1", ""],
        ["6", "0.0.0.0", *[""] * 5, "255.255.255.255", "1", "1", ""],
        ["5", "0.0.0.0", *granted, "", mine, "1", "1", ""],
    ]


def test_names_of_machines_are_known_and_no_others(lan: Segment) -> None:
    rows = tshark(
        answers(lan, dns("node-2"), dns("NODE-1.lan"), dns("node-2", 28), dns("debian.org")),
        *("dns.flags.rcode", "dns.flags.authoritative", "dns.a", "dns.qry.name"),
        *("ip.checksum.status", "udp.checksum.status", "_ws.malformed"),
    )
    one, two = (str(ADDRESSES.of(name).ip) for name in ("node-1", "node-2"))
    assert rows == [
        ["0", "1", two, "node-2", "1", "1", ""],
        ["0", "1", one, "NODE-1.lan", "1", "1", ""],
        ["0", "1", "", "node-2", "1", "1", ""],
        ["3", "1", "", "debian.org", "1", "1", ""],
    ]


def test_arp_echo_and_routers_are_answered(lan: Segment) -> None:
    arp = BROADCAST + CLIENT + b"\x08\x06\0\1\x08\0\6\4\0\1" + CLIENT + b"\x0a\x4d\0\x09"
    echo = b"\x08\0\0\0\0\1\0\1ping!"
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(echo), 0, 0, 64, 1, 0)
    ping = MAC + CLIENT + b"\x08\x00" + header + b"\x0a\x4d\0\x09" + OWN + echo
    neighbour = b"\x87\0\0\0\0\0\0\0" + bytes.fromhex("fe80000000000000505400fffe000001")
    rows = tshark(
        answers(lan, arp + bytes(6) + OWN, ping, icmpv6(b"\x85" + bytes(7)), icmpv6(neighbour)),
        *("arp.opcode", "arp.src.hw_mac", "icmp.type", "icmp.checksum.status", "icmpv6.type"),
        *("icmpv6.opt.prefix", "icmpv6.nd.ra.router_lifetime", "icmpv6.checksum.status"),
        "_ws.malformed",
    )
    assert rows == [
        ["2", MAC.hex(":"), *[""] * 7],
        ["", "", "0", "1", *[""] * 5],
        ["", "", "", "", "134", "fd77::", "0", "1", ""],
        ["", "", "", "", "136", "", "", "1", ""],
    ]


def test_hostile_frames_are_ignored() -> None:
    sent: list[bytes] = []
    station = Station(ADDRESSES, lambda: ["node-1"], sent.append)
    dice = random.Random(1)
    good = [
        dhcp(1),
        dhcp(3),
        dns("node-1"),
        icmpv6(b"\x85" + bytes(7)),
        icmpv6(b"\x87" + bytes(23)),
    ]
    for question in good:
        for size in range(12, len(question)):
            station.take("node-1", question[:size])
        for _ in range(2000):
            broken = bytearray(question)
            for _ in range(dice.randrange(1, 5)):
                broken[dice.randrange(12, len(broken))] = dice.randrange(256)
            station.take("node-1", bytes(broken))
    assert all(len(answer) < 1500 for answer in sent)
    sent.clear()
    station.take("node-1", dns("x" * 64))
    station.take("node-1", dhcp(3, bytes([54, 4, 10, 77, 0, 9])))  # to another server
    station.take("node-1", dhcp(4))
    assert sent == []


def test_a_segment_without_addresses_has_no_station(tmp_path: Path) -> None:
    with Segment("lan", folder=tmp_path) as segment, segment.attach("node-1") as end:
        end.send(dhcp(1))
        assert segment.counters().ports.keys() == {"node-1"}
        with pytest.raises(UsageError, match="segment lan has no addresses"):
            segment.address("node-1")


def test_addresses_hold_across_a_fork(lan: Segment, tmp_path: Path) -> None:
    lan.add_port("node-1")
    state: SegmentState = lan.save()
    with (
        Segment("fork", folder=tmp_path, state=state) as fork,
        fork.attach("node-1") as end,
    ):
        fork.resume()
        end.settimeout(60)
        end.send(dhcp(1))
        assert ADDRESSES.of("node-1").ip.packed in end.recv(4096)
        assert fork.address("node-1") == lan.address("node-1")


def test_addresses_depend_on_names_alone_and_do_not_clash() -> None:
    assert str(ADDRESSES.of("node-1")) == str(Addresses().of("node-1"))
    small = Addresses(network="192.0.2.0/29", prefix=None)
    ips = {small.of(f"node-{number}").ip for number in range(200)}
    assert ips == {IPv4Address(f"192.0.2.{number}") for number in range(2, 7)}
    clash = next(name for name in map(str, range(99)) if small.of(name) == small.of("a"))
    with pytest.raises(UsageError, match="have the same address"):
        small.check("a", ["a", clash])


def test_a_clash_of_addresses_is_refused(tmp_path: Path) -> None:
    small = Addresses(network="192.0.2.0/29")
    with Segment("lan", folder=tmp_path, addresses=small) as segment:
        with pytest.raises(UsageError, match="have the same address"):
            for number in range(7):
                segment.add_port(f"node-{number}")
        with pytest.raises(UsageError, match="has the station's MAC address"):
            segment.attach("node-0", mac=MAC.hex(":"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "10.77.0.1/16"}, "has host bits set"),
        ({"network": "10.77.0.0/30"}, "too small"),
        ({"network": "lan"}, "not a network"),
        ({"prefix": "fd77::/48"}, "of a /64"),
        ({"lease": 1}, "120 seconds and more"),
    ],
)
def test_wrong_networks_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Addresses(**values)  # type: ignore[arg-type]
