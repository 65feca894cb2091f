"""Alpine Linux: cloud-init without systemd. Written from documentation, not run."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.profiles.cloud import Cloud


class Alpine(Cloud):
    """The words of Alpine, whose services OpenRC runs."""

    name = "alpine"

    def request_reboot(self) -> str:
        """Return the command that reboots the guest cleanly."""
        return self.as_root("reboot")

    def unit_state(self, unit: str) -> str:
        """Return the command that prints ``active`` or ``failed`` (``rc-service(8)``)."""
        service = unit.removesuffix(".service")
        return f"rc-service {service} status >/dev/null 2>&1 && echo active || echo failed"

    def wait_running(self, deadline: Deadline | float | None = None) -> None:
        """Wait until cloud-init is done and no service of the default runlevel has crashed.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: cloud-init reports an error, or a service has crashed.
        """
        limit = self.machine.scale.limit(deadline, 60)
        self.wait_cloud_init(limit)
        self.machine.succeed('test -z "$(rc-status --crashed 2>/dev/null)"', deadline=limit)
