"""The skiff image: an immutable Debian in two slots, made of systemd's own parts.

What its installer asks and says is documented in ``images/skiff/README.md``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from harness.deadline import Deadline, of
from harness.errors import InstallRefusedError, UsageError
from harness.profiles.base import Profile

CONFIRMATION: Final = "INSTALL"
"""What the installer wants typed before it writes."""

_REFUSED: Final = r"skiff-install: (refused|failed): ([^\r\n]*)\r?\n"
_DONE: Final = r"skiff-install: (done): ([^\r\n]*)\r?\n"


@dataclass(frozen=True, slots=True)
class Install:
    """The answers to the installer.

    Attributes:
        disk: The target, by serial or path.
        hostname: The installed system's name.
        user: The account to make; it may use sudo.
        key: The account's SSH public key; empty for none.
        password: The account's password on the console; empty for none.
    """

    disk: str
    hostname: str = "skiff"
    user: str = "admin"
    key: str = ""
    password: str = ""

    def settings(self, *, finally_: str = "poweroff") -> str:
        """Return them as the file that an unattended installation reads.

        Args:
            finally_: What the live system does afterwards: ``poweroff``, ``reboot`` or ``none``.
        """
        # JSON strings are YAML's double-quoted ones, which is what the installer's subset takes.
        lines = ["#cloud-config", "skiff:", "  install:"]
        for name in ("disk", "hostname", "user", "password"):
            if value := getattr(self, name):
                lines.append(f"    {name}: {json.dumps(value)}")
        if self.key:
            lines += ["    ssh_authorized_keys:", f"      - {json.dumps(self.key)}"]
        lines.append(f"    finally: {finally_}")
        return "\n".join(lines) + "\n"


class Skiff(Profile):
    """The words for skiff."""

    name = "skiff"

    @classmethod
    def credentials(cls, authorized_key: str) -> dict[str, str]:
        """Return the credential that lets the run's key in for as long as it is handed over.

        The home of root is read-only here, so that nothing can be provisioned into it; sshd reads
        this one where systemd puts it (``systemd.system-credentials(7)``).
        """
        return {"ssh.ephemeral-authorized_keys-all": authorized_key}

    def status(self) -> dict[str, str]:
        """Return what ``skiff-status`` prints, by name: IMAGE, VERSION, SLOT, ROOT, VERITY."""
        lines = self.machine.succeed(self.as_root("skiff-status")).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def version(self) -> str:
        """Return the version of the running image."""
        return self.status()["VERSION"]

    def slot(self) -> str:
        """Return the slot: ``live``, ``a`` or ``b``."""
        return self.status()["SLOT"]

    def install(
        self,
        answers: Install | None = None,
        *,
        confirm: str = CONFIRMATION,
        deadline: Deadline | float | None = None,
        **more: Any,
    ) -> None:
        """Install over the console, answering the installer's questions as a person would.

        Args:
            answers: The answers.
            confirm: What is typed where the installer asks for its confirmation.
            deadline: 60 s on a good host by default.
            more: Not known.

        Raises:
            InstallRefusedError: if the installer refuses or fails; its own words.
        """
        if answers is None or more:
            raise UsageError(f"install takes answers, not {more}", hint="install(Install(disk=...))")
        limit = of(deadline, 60)
        console = self.machine.console
        with self.machine.timeline.step("install over the console", machine=self.machine.name):
            if not console.logged_in:
                self.login(limit)
            console.leave()
            console.send_line("skiff-install")
            for question, answer in (
                ("Disk (path or serial): ", answers.disk),
                ("Hostname [skiff]: ", answers.hostname),
                ("User: ", answers.user),
                ("SSH public key (empty for none): ", answers.key),
                ("Password for the console (empty for none): ", answers.password),
                ("The same password again: ", answers.password or None),
                (f"Type {CONFIRMATION} to go on: ", confirm),
            ):
                if answer is None:
                    continue
                self._expect(re.escape(question), limit)
                console.send_line(answer)
            self._expect(_DONE, limit)

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation says on the console that it is done.

        Args:
            deadline: From power on; 120 s on a good host by default.

        Raises:
            InstallRefusedError: if the installer refuses or fails; its own words.
        """
        with self.machine.timeline.step("install unattended", machine=self.machine.name):
            self._expect(_DONE, of(deadline, 120))

    def _expect(self, pattern: str, limit: Deadline) -> None:
        found = self.machine.console.expect([pattern, _REFUSED], limit)
        if found.index == 1:
            raise InstallRefusedError(
                found.group(2),
                evidence=str(self.machine.evidence / "serial.log"),
            )
