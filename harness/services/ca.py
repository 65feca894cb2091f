"""The certificate authority of a run, and the certificates that servers show to guests.

trustme makes the keys (ECDSA on P-256) and the certificates. A test puts the authority's own
certificate into the guest's trust store. Certificates are valid from 2000 to 3000, because a guest's
clock may show any date.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

GUEST_ADDRESS: Final = "10.0.2.100"
"""The address at which guests find services; certificates are for it."""

_DAY: Final = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate and key.

    Attributes:
        pem: The certificate, PEM.
        path: A file with the private key and the certificate, PEM, that only its owner can read.
    """

    pem: str
    path: Path

    def context(self) -> ssl.SSLContext:
        """Return the context of a server that shows this certificate: TLS 1.2 or later, HTTP/1.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        context.set_alpn_protocols(["http/1.1"])
        return context


class Ca:
    """A certificate authority.

    Args:
        folder: The folder that keeps the certificates; created if it does not exist.
        name: The organizational unit in the authority's name.

    Attributes:
        pem: The authority's certificate, PEM.
        path: The file with the same.
    """

    def __init__(self, folder: Path, name: str = "Harness run CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA(
            path_length=0, organization_name="Harness", organization_unit_name=name
        )
        self.pem = self._authority.cert_pem.bytes().decode()
        self.path = folder / "ca.pem"
        self.path.write_text(self.pem)

    def issue(
        self,
        names: Sequence[str] = (GUEST_ADDRESS, "127.0.0.1", "localhost"),
        *,
        label: str = "server",
        expired: bool = False,
    ) -> Certificate:
        """Return a new certificate of a server.

        Args:
            names: The IP addresses and DNS names that the certificate is for.
            label: The common name, and the name of the file.
            expired: Whether the certificate expired yesterday.
        """
        ends = datetime.datetime.now(datetime.UTC) - _DAY if expired else None
        leaf = self._authority.issue_cert(
            *names, common_name=label, organization_name="Harness", not_after=ends
        )
        path = self._folder / f"{label}.pem"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
        return Certificate(leaf.cert_chain_pems[0].bytes().decode(), path)
