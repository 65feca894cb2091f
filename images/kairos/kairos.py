"""Kairos' live medium. Written from documentation, not run."""

from __future__ import annotations

from harness.profiles import Profile


class Kairos(Profile):
    """The words of Kairos: systemd, and an account that may use sudo."""

    name = "kairos"

    def version(self) -> str:
        """Return Kairos' version, without the ``v`` of its name."""
        line = self.machine.succeed("sed -n 's/^KAIROS_VERSION=//p' /etc/kairos-release")
        return line.strip().strip('"').removeprefix("v")
