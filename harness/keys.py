"""SSH keys, made anew for each run."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An SSH key made for one run.

    Attributes:
        private: The private key in OpenSSH's format.
        public: The line for ``authorized_keys``.
    """

    private: str
    public: str

    @classmethod
    def generate(cls, comment: str = "harness") -> KeyPair:
        """Return a new Ed25519 pair."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return cls(private.decode(), f"{public.decode()} {comment}")

    def paramiko(self) -> paramiko.Ed25519Key:
        """Return the key as paramiko takes it."""
        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.private))

    def write(self, path: Path) -> Path:
        """Write the private key for ``ssh -i``, readable by its owner only."""
        path.touch(mode=0o600)
        path.write_text(self.private)
        return path
