"""The micro image: busybox in an initramfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.profiles.abilities import Versioned
from harness.profiles.base import Profile


class Micro(Profile):
    """The words of micro, which runs busybox init: it has no units and no slots."""

    name = "micro"
    keeps_host_key = False

    def request_reboot(self) -> str:
        """Return the busybox command that reboots the guest cleanly."""
        return "reboot"

    def version(self) -> str:
        """Return ``VERSION_ID`` of ``os-release(5)``."""
        output = self.machine.succeed("sed -n 's/^VERSION_ID=//p' /etc/os-release")
        return output.strip().strip('"')


if TYPE_CHECKING:
    _: type[Versioned] = Micro
