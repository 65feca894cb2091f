"""The skiff image: an immutable Debian in two slots, made of systemd's own parts.

What its installer asks and says is documented in ``images/skiff/README.md``.
"""

from __future__ import annotations

import json
import re
from typing import Final

from harness.deadline import Deadline
from harness.errors import InstallRefusedError
from harness.profiles.base import Install, Profile

CONFIRMATION: Final = "INSTALL"
"""What the installer wants typed before it writes."""

_REFUSED: Final = r"skiff-install: (refused|failed): ([^\r\n]*)\r?\n"
_DONE: Final = r"skiff-install: (done): ([^\r\n]*)\r?\n"


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

    @classmethod
    def seed(cls, answers: Install) -> dict[str, str]:
        """Return the NoCloud seed that installs unattended and powers off."""
        return {"user-data": _settings(answers)}

    @classmethod
    def install_credentials(cls, answers: Install) -> dict[str, str]:
        """Return the credential that installs unattended and powers off."""
        return {"skiff.install": _settings(answers)}

    def status(self) -> dict[str, str]:
        """Return what ``skiff-status`` prints, by name: IMAGE, VERSION, SLOT, ROOT, VERITY."""
        lines = self.machine.succeed(self.as_root("skiff-status")).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def version(self) -> str:
        """Return the version of the running image."""
        return self.status()["VERSION"]

    def verified(self) -> bool:
        """Whether the root is checked by dm-verity."""
        return self.status()["VERITY"] == "yes"

    def slot(self) -> str:
        """Return the slot: ``live``, ``a`` or ``b``."""
        return self.status()["SLOT"]

    def install(
        self,
        answers: Install,
        *,
        confirm: bool = True,
        deadline: Deadline | float | None = None,
    ) -> None:
        """Install over the console, answering the installer's questions as a person would.

        Args:
            answers: The answers.
            confirm: Whether the confirmation is typed; otherwise ``yes``, which is none.
            deadline: 60 s on a good host by default.

        Raises:
            InstallRefusedError: if the installer refuses or fails; its own words.
        """
        limit = self.limit("install", deadline, 60)
        console = self.machine.console
        with self.machine.timeline.step("install over the console", machine=self.machine.name):
            if not console.logged_in:
                self.login(limit)
            with console.interactive(limit):
                console.send_line("skiff-install")
                for question, answer in (
                    ("Disk (path or serial): ", answers.disk),
                    ("Hostname [skiff]: ", answers.hostname),
                    ("User: ", answers.user),
                    ("SSH public key (empty for none): ", answers.key),
                    ("Password for the console (empty for none): ", answers.password),
                    ("The same password again: ", answers.password or None),
                    (f"Type {CONFIRMATION} to go on: ", CONFIRMATION if confirm else "yes"),
                ):
                    if answer is None:
                        continue
                    self._expect(re.escape(question), limit)
                    console.send_line(answer)
                self._expect(_DONE, limit)

    def install_from(self, user_data: str, deadline: Deadline | float | None = None) -> None:
        """Install from settings that lie in a file; the machine then powers off, as they say.

        Args:
            user_data: The settings.
            deadline: 60 s on a good host by default.

        Raises:
            InstallRefusedError: if the installer refuses or fails; its own words.
        """
        limit = self.limit("install", deadline, 60)
        self.machine.ssh.put(user_data, "/run/settings.yaml")
        told = self.machine.execute("skiff-install --settings /run/settings.yaml", deadline=limit)
        if found := re.search(_REFUSED, told.output):
            raise InstallRefusedError(found[2], evidence=told.output)

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation says on the console that it is done.

        Args:
            deadline: From power on; 120 s on a good host by default.

        Raises:
            InstallRefusedError: if the installer refuses or fails; its own words.
        """
        with self.machine.timeline.step("install unattended", machine=self.machine.name):
            self._expect(_DONE, self.limit("install", deadline, 120))

    def _expect(self, pattern: str, limit: Deadline) -> None:
        found = self.machine.console.expect([pattern, _REFUSED], limit)
        if found.index == 1:
            raise InstallRefusedError(
                found.group(2),
                evidence=str(self.machine.evidence / "serial.log"),
            )


def _settings(answers: Install) -> str:
    """Return the answers as the file that an unattended installation reads."""
    # JSON strings are YAML's double-quoted ones, which is what the installer's subset takes.
    lines = ["#cloud-config", "skiff:", "  install:"]
    for name in ("disk", "hostname", "user", "password"):
        if value := getattr(answers, name):
            lines.append(f"    {name}: {json.dumps(value)}")
    if answers.key:
        lines += ["    ssh_authorized_keys:", f"      - {json.dumps(answers.key)}"]
    lines.append("    finally: poweroff")
    return "\n".join(lines) + "\n"
