"""SSH to one guest: a connection that is kept, and made again after a reboot.

paramiko speaks the protocol. The run's own key logs in; the host key that the guest shows first is
pinned. Each command is one line of a JSON-lines log.

:mod:`~harness.ssh.connection` connects, :mod:`~harness.ssh.session` runs commands and copies files.
"""

from harness.ssh.session import CHUNK, LOGGED, Ssh, SshResult

__all__ = ["CHUNK", "LOGGED", "Ssh", "SshResult"]
