"""SSH to one guest: a connection that is kept, and replaced after a reboot.

paramiko implements the protocol. Harness logs in with the key of the run and pins the first host
key that the guest shows. Each command is one line of a JSON-lines log.

:mod:`~harness.ssh.connection` connects, :mod:`~harness.ssh.session` runs commands and copies files.
Both load paramiko, which takes 0.1 s, so :class:`Ssh` is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.ssh.key import KeyPair

if TYPE_CHECKING:
    from harness.ssh.session import Ssh

__all__ = ["KeyPair", "Ssh"]


def __getattr__(name: str) -> type[Ssh]:
    if name == "Ssh":
        from harness.ssh.session import Ssh

        return Ssh
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
