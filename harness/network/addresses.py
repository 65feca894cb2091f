"""The addresses of a segment's machines: the same for the same names, whoever comes first."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import Any, Final, Self

from harness.errors import UsageError

NETWORK: Final = "10.77.0.0/16"
PREFIX: Final = "fd77::/64"
LARGEST: Final = 29
"""The longest prefix of a network: six addresses, of which the station has one."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The networks of a segment, and what its station tells the machines of them.

    Attributes:
        network: The IPv4 network. Its first address is the station's.
        prefix: The IPv6 prefix that machines make their addresses from (SLAAC, RFC 4862); ``None`` for
            none.
        domain: The domain of the machines' names.
        lease: Seconds that an address is leased for.

    Raises:
        UsageError: A network is not one, or too small.
    """

    network: str = NETWORK
    prefix: str | None = PREFIX
    domain: str = "lan"
    lease: int = 3600

    def __post_init__(self) -> None:
        try:
            network = IPv4Network(self.network)
            prefix = IPv6Network(self.prefix) if self.prefix is not None else None
        except ValueError as error:
            raise UsageError(
                f"not a network: {error}", hint=f"{NETWORK} and {PREFIX} are"
            ) from None
        if network.prefixlen > LARGEST:
            raise UsageError(f"network {network} is too small: at most /{LARGEST}")
        if prefix is not None and prefix.prefixlen != 64:
            raise UsageError(f"{prefix}: machines make their addresses of a /64 (RFC 4862, 5.5.3)")
        if not 120 <= self.lease <= 1 << 31:
            raise UsageError(f"a lease is 120 seconds and more, not {self.lease}")

    @property
    def station(self) -> IPv4Interface:
        """The address of the station, which answers DHCP and DNS."""
        network = IPv4Network(self.network)
        return ipaddress.IPv4Interface((network.network_address + 1, network.prefixlen))

    def of(self, port: str) -> IPv4Interface:
        """Return the address of a port, which depends on its name alone."""
        network = IPv4Network(self.network)
        digest = blake2b(port.encode(), digest_size=8).digest()
        # Not the network's own address, the station's, nor the one for broadcasts.
        number = 2 + int.from_bytes(digest, "big") % (network.num_addresses - 3)
        return ipaddress.IPv4Interface((network.network_address + number, network.prefixlen))

    def check(self, port: str, others: Iterable[str]) -> None:
        """Check that no other port has the same address.

        Raises:
            UsageError: One has.
        """
        for other in others:
            if other != port and self.of(other) == self.of(port):
                raise UsageError(
                    f"{port} and {other} have the same address {self.of(port).ip}",
                    hint="rename one, or take a larger network",
                )

    def names(self, ports: Iterable[str]) -> dict[str, IPv4Address]:
        """Return the addresses by name, as DNS answers them: with the domain and without."""
        addresses = {}
        for port in ports:
            addresses[port] = addresses[f"{port}.{self.domain}"] = self.of(port).ip
        return addresses

    def dump(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "network": self.network,
            "prefix": self.prefix,
            "domain": self.domain,
            "lease": self.lease,
        }

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Return what :meth:`dump` made plain JSON of."""
        return cls(**values)
