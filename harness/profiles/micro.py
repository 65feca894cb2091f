"""The micro image: busybox in an initramfs."""

from __future__ import annotations

from harness.profiles.base import Profile


class Micro(Profile):
    """Busybox init: no units, no slots."""

    name = "micro"
    keeps_host_key = False

    def request_reboot(self) -> str:
        """Return busybox' command that reboots in order."""
        return "reboot"

    def version(self) -> str:
        """Return VERSION_ID of os-release."""
        told = self.machine.succeed("sed -n 's/^VERSION_ID=//p' /etc/os-release")
        return told.strip().strip('"')
