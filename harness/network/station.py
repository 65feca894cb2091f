"""The station of a segment: answers machines that ask for an address, a name or a prefix.

It is one more machine on the segment, inside the switch. It answers ARP (RFC 826), DHCP (RFC 2131, with
options of RFC 2132), DNS (RFC 1035: addresses of the machines, and no others), ICMP echo (RFC 792), and
router solicitations of IPv6 (RFC 4861) with a prefix and without a default route. It asks no machine
and keeps nothing: a lease is the address that the port's name has, so it holds across forks.

What machines send is hostile: whatever is not a well-formed question is ignored.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

from harness.network.addresses import Addresses

PORT: Final = "station."
"""The name of its port: no machine's, which does not end in a dot."""

MAC: Final = b"\x52\x54\x00\x00\x00\x01"
_LINK_LOCAL: Final = IPv6Address("fe80::5054:ff:fe00:1").packed

_BROADCAST: Final = b"\xff" * 6
_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_ICMP, _UDP, _ICMPV6 = 1, 17, 58
_DHCP_SERVER, _DHCP_CLIENT, _DNS = 67, 68, 53

_COOKIE: Final = b"\x63\x82\x53\x63"  # RFC 2131, 3
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8  # RFC 2132, 9.6
_BOOTP: Final = struct.Struct(">BBBBIHH4s4s4s4s16s192x")

_SOLICITATION, _ADVERTISEMENT = 133, 134  # RFC 4861, 4.1 and 4.2
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136


class Station:
    """Answers frames.

    Args:
        addresses: The networks.
        ports: Returns the names of the ports that there are.
        answer: Called with each frame that it sends.
    """

    def __init__(
        self,
        addresses: Addresses,
        ports: Callable[[], Collection[str]],
        answer: Callable[[bytes], None],
    ) -> None:
        self._addresses = addresses
        self._ports = ports
        self._answer = answer
        self._own = addresses.station.ip.packed

    def take(self, source: str, frame: bytes) -> None:
        """Take a frame from a port."""
        kind, payload = frame[12:14], frame[14:]
        with contextlib.suppress(ValueError, struct.error, IndexError):
            if kind == _ARP:
                self._arp(payload)
            elif kind == _IPV4:
                self._ipv4(source, frame[6:12], payload)
            elif kind == _IPV6 and self._addresses.prefix is not None:
                self._ipv6(frame[6:12], payload)

    # --- IPv4 -----------------------------------------------------------------------------------------

    def _arp(self, packet: bytes) -> None:
        # A request for an address of IPv4 on Ethernet.
        if packet[:8] == b"\0\1\x08\0\6\4\0\1" and packet[24:28] == self._own:
            mac, address = packet[8:14], packet[14:18]
            reply = packet[:6] + b"\0\2" + MAC + self._own + mac + address
            self._answer(mac + MAC + _ARP + reply)

    def _ipv4(self, source: str, mac: bytes, packet: bytes) -> None:
        header = (packet[0] & 15) * 4
        (length,) = struct.unpack_from(">H", packet, 2)
        fragment = struct.unpack_from(">H", packet, 6)[0] & 0x3FFF
        if packet[0] >> 4 != 4 or header < 20 or length > len(packet) or fragment:
            return
        protocol, asker, target = packet[9], packet[12:16], packet[16:20]
        content = packet[header:length]
        if protocol == _ICMP and content[0] == 8 and target == self._own:
            reply = b"\0\0\0\0" + content[4:]
            reply = reply[:2] + _checksum(reply) + reply[4:]
            self._answer(mac + MAC + _IPV4 + self._packet(asker, _ICMP, reply))
        elif protocol == _UDP:
            from_port, to_port, size = struct.unpack_from(">HHH", content)
            question = content[8:size]
            if to_port == _DHCP_SERVER:
                self._dhcp(source, question)
            elif to_port == _DNS and target == self._own:
                self._udp(mac, asker, _DNS, from_port, self._dns(question))

    def _packet(self, target: bytes, protocol: int, content: bytes) -> bytes:
        header = struct.pack(
            ">BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(content), 0, 0x4000, 64, protocol, 0, self._own, target),
        )
        return header[:10] + _checksum(header) + header[12:] + content

    def _udp(self, mac: bytes, target: bytes, source: int, port: int, content: bytes) -> None:
        header = struct.pack(">HHHH", source, port, 8 + len(content), 0)
        pseudo = self._own + target + struct.pack(">BBH", 0, _UDP, 8 + len(content))
        check = _checksum(pseudo + header + content)
        datagram = header[:6] + (check if any(check) else b"\xff\xff") + content
        self._answer(mac + MAC + _IPV4 + self._packet(target, _UDP, datagram))

    def _dhcp(self, port: str, message: bytes) -> None:
        operation, hardware, size, _, number, _, flags, current, _, _, _, mac = _BOOTP.unpack_from(
            message
        )
        options = _options(message[_BOOTP.size :])
        if (operation, hardware, size) != (1, 1, 6):
            return
        kind = options.get(53, b"\0")[0]
        server = options.get(54)
        own = self._addresses.of(port)
        if kind == _DISCOVER:
            answer = _OFFER
        elif kind == _INFORM:
            answer = _ACK
        elif kind == _REQUEST and server in (None, self._own):
            wanted = options.get(50, current)
            answer = _ACK if wanted == own.ip.packed else _NAK
        else:
            return
        granted = {53: bytes([answer]), 54: self._own}
        address = b"\0\0\0\0"
        if answer != _NAK:
            name, domain = port.partition(".")[0], self._addresses.domain
            granted |= {1: own.netmask.packed, 6: self._own, 12: name.encode(), 15: domain.encode()}
            if kind != _INFORM:
                granted[51] = self._addresses.lease.to_bytes(4, "big")
                address = own.ip.packed
        reply = _BOOTP.pack(
            *(2, 1, 6, 0, number, 0, flags, current, address, self._own, b"\0\0\0\0", mac)
        )
        reply += _COOKIE + b"".join(
            bytes([code, len(value)]) + value for code, value in granted.items()
        )
        # To all: a client that has no address yet may not take a frame to the one that it is offered
        # (RFC 2131, 4.1), and no other machine waits for it.
        to = current if any(current) and answer != _NAK else b"\xff" * 4
        target = mac[:6] if any(current) and answer != _NAK else _BROADCAST
        self._udp(target, to, _DHCP_SERVER, _DHCP_CLIENT, reply + b"\xff")

    def _dns(self, question: bytes) -> bytes:
        number, flags, count = struct.unpack_from(">HHH", question)
        if flags & 0xF800 or count != 1:
            raise ValueError("not a standard query of one name")
        name, end = _name(question, 12)
        kind, family = struct.unpack_from(">HH", question, end)
        known: Mapping[str, IPv4Address] = self._addresses.names(self._ports())
        address = known.get(name)
        code, answers = 0, b""
        if address is None:
            code = 3  # NXDOMAIN, RFC 1035, 4.1.1
        elif (kind, family) == (1, 1):
            answers = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + address.packed
        # The answer is authoritative (AA), and says whether recursion was desired (RD).
        flags = 0x8400 | flags & 0x0100 | code
        header: bytes = struct.pack(">HHHHHH", number, flags, 1, bool(answers), 0, 0)
        return header + question[12 : end + 4] + answers

    # --- IPv6 -----------------------------------------------------------------------------------------

    def _ipv6(self, mac: bytes, packet: bytes) -> None:
        length, following, hops = struct.unpack_from(">HBB", packet, 4)
        asker, content = packet[8:24], packet[40 : 40 + length]
        # Only neighbours can send 255 hops (RFC 4861, 6.1.1 and 7.1.1).
        if packet[0] >> 4 != 6 or following != _ICMPV6 or hops != 255:
            return
        to = asker if any(asker) else IPv6Address("ff02::1").packed
        target = mac if any(asker) else b"\x33\x33\0\0\0\1"
        if content[0] == _SOLICITATION:
            prefix = IPv6Network(self._addresses.prefix or "")
            # No default router: a lifetime of 0. On link and autonomous: 0xC0. For ever: all ones.
            reply = struct.pack(">BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, 0, 0, 0)
            reply += b"\1\1" + MAC
            reply += struct.pack(
                ">BBBBIII16s",
                *(3, 4, prefix.prefixlen, 0xC0, 0xFFFFFFFF, 0xFFFFFFFF, 0),
                prefix.network_address.packed,
            )
        elif content[0] == _NEIGHBOUR_SOLICITATION and content[8:24] == _LINK_LOCAL:
            # Router, solicited if there is somebody to tell, override (RFC 4861, 4.4).
            flags = 0xA0000000 | (0x40000000 if any(asker) else 0)
            reply = struct.pack(">BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, flags)
            reply += _LINK_LOCAL + b"\2\1" + MAC
        else:
            return
        pseudo = _LINK_LOCAL + to + struct.pack(">II", len(reply), _ICMPV6)
        reply = reply[:2] + _checksum(pseudo + reply) + reply[4:]
        header = struct.pack(">IHBB", 6 << 28, len(reply), _ICMPV6, 255) + _LINK_LOCAL + to
        self._answer(target + MAC + _IPV6 + header + reply)


def _checksum(content: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071); the field itself is zero."""
    padded = content + b"\0" * (len(content) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def _options(content: bytes) -> dict[int, bytes]:
    """Return the options of a DHCP message (RFC 2132, 2)."""
    if content[:4] != _COOKIE:
        raise ValueError("no DHCP message")
    options: dict[int, bytes] = {}
    place = 4
    while content[place] != 255:
        if content[place] == 0:
            place += 1
            continue
        size = content[place + 1]
        options[content[place]] = content[place + 2 : place + 2 + size]
        place += 2 + size
    return options


def _name(message: bytes, place: int) -> tuple[str, int]:
    """Return a name in a DNS question, in lower case, and the offset behind it (RFC 1035, 3.1)."""
    labels = []
    while size := message[place]:
        if size > 63:
            raise ValueError("a question compresses no name")
        labels.append(message[place + 1 : place + 1 + size].decode("ascii").lower())
        place += 1 + size
    return ".".join(labels), place + 1
