"""The SSH key of a run."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paramiko


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair, generated for one run.

    Attributes:
        private: The private key in the format of OpenSSH.
        public: The public key as a line of ``authorized_keys``.
    """

    private: str
    public: str

    @classmethod
    def generate(cls, comment: str = "harness") -> KeyPair:
        """Return a new pair.

        Args:
            comment: The comment of the public key.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
        """Return the private key as a key object of paramiko."""
        import paramiko

        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.private))

    def write(self, path: Path) -> Path:
        """Write the private key for ``ssh -i``, with mode 0600; return the path."""
        path.touch(mode=0o600)
        path.write_text(self.private)
        return path
