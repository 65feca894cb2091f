"""A certificate authority made for one run, and the certificates that servers show guests.

Keys are ECDSA on P-256, which every TLS client of the last ten years takes. The authority's own
certificate is what a test puts into the guest's trust store; it lives as long as the run. Profiles of
certificates follow RFC 5280.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

GUEST_ADDRESS: Final = "10.0.2.100"
"""Where guests find services; certificates are for it."""

_DAY: Final = datetime.timedelta(days=1)

SLACK: Final = 400 * _DAY
"""How far a guest's clock may be off: a guest's may be anything, and no test of ours is about that."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate and key.

    Attributes:
        pem: The certificate, PEM.
        key: Its private key, PEM.
        path: A file with both, readable by its owner only.
    """

    pem: str
    key: str
    path: Path

    def context(self) -> ssl.SSLContext:
        """Return what a TLS server needs to show it: TLS 1.2 and later, HTTP/1.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        context.set_alpn_protocols(["http/1.1"])
        return context


class Ca:
    """A certificate authority.

    Args:
        folder: Where certificates are kept; made if absent.
        name: Its common name.
    """

    def __init__(self, folder: Path, name: str = "Harness run CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._now = now
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SLACK)
            .not_valid_after(now + SLACK)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._identifier = identifier
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
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
            names: IP addresses and DNS names that it is for.
            label: Its common name, and the name of its file.
            expired: Whether it was valid until yesterday only.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        ends = self._now - _DAY if expired else self._now + SLACK
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - SLACK)
            .not_valid_after(ends)
            .add_extension(
                x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        path = self._folder / f"{label}.pem"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(private + pem)
        return Certificate(pem, private, path)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
