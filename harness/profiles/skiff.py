"""The skiff image: an immutable Debian in two slots, built from systemd's own components.

``images/skiff/README.md`` documents the questions and messages of its installer.
"""

from __future__ import annotations

import base64
import contextlib
import re
import select
import shlex
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from harness import arch as arches
from harness.deadline import Deadline
from harness.errors import (
    GuestError,
    InstallRefusedError,
    RecoveryRefusedError,
    UpgradeRefusedError,
    WaitTimeoutError,
)
from harness.profiles import _skiff
from harness.profiles.abilities import (
    CredentialInstallable,
    Installable,
    MultiArch,
    Pairable,
    Recoverable,
    Resettable,
    Rollbackable,
    SeedInstallable,
    Verified,
)
from harness.profiles.base import Profile
from harness.profiles.terms import (
    BootRecord,
    Install,
    Malformed,
    Refusal,
    Slot,
    SlotPart,
    UpdateFile,
)
from harness.spec import MIB, Account

CONFIRMATION: Final = "INSTALL"
"""The word that a user has to type before the installer writes."""

_PARTITIONS: Final = ("boot", "a", "a", "b", "b", "oem", "recovery", "recovery")
"""The parts that the disk's partitions belong to: the ESP, root and verity of each slot, the installer's
record, root and verity of recovery. The last partition, ``var``, is not listed."""

_TRIES: Final = 3
"""Boots that a new version gets, systemd-boot's boot counting; ``images/skiff`` sets it."""

_OUTCOME: Final = re.compile(r"skiff-[a-z]+: (done|already|refused|failed): ([^\r\n]*)")
_REFUSED: Final = r"skiff-install: (refused|failed): ([^\r\n]*)\r?\n"
_DONE: Final = r"skiff-install: (done): ([^\r\n]*)\r?\n"
_PAIRING_CODE: Final = re.compile(r"^skiff-pair:[A-Z2-9]{8}$")

_MOMENT: Final = 500
"""Milliseconds in which the end of QEMU is known after its connections have closed."""


class Skiff(Profile):
    """The words of skiff."""

    name = "skiff"
    tries: ClassVar[int | None] = _TRIES
    cluster_command: ClassVar[str] = "skiff-cluster"
    cluster_credential: ClassVar[str] = "skiff.cluster"
    pairing_port: ClassVar[int] = 7421
    state_partition = "var"
    update_files: ClassVar[Mapping[UpdateFile, str]] = {
        "root": "*.root.raw",
        "kernel": "*.efi",
        "signature": "SHA256SUMS.gpg",
    }
    refusals: ClassVar[Mapping[Refusal, str]] = {
        "signature": "the signature of SHA256SUMS is wrong",
        "space": "no space left",
        "older": "is older than",
        "architecture": "has no update for |, and this machine is ",
        "too small": r"is too small: 2\.5 GiB needed, 0\.5 GiB found",
        "no such disk": r"^no disk .*; disks here: ",
        "not confirmed": "^not confirmed$",
        "the medium": "is the medium this system runs from",
        "code": "^wrong code$",
    }

    @classmethod
    def credentials(cls, authorized_key: str) -> dict[str, str]:
        """Return the credential that lets the run's key log in while the credential is present.

        The home of root is read-only, so no key can be copied there. sshd reads this credential
        from the place where systemd puts it (``systemd.system-credentials(7)``).
        """
        return {"ssh.ephemeral-authorized_keys-all": authorized_key}

    @classmethod
    def seed(cls, answers: Install) -> dict[str, str]:
        """Return the files of a NoCloud seed that installs and powers off."""
        return {"user-data": _skiff.settings(answers)}

    @classmethod
    def malformed_seed(cls, answers: Install, how: Malformed) -> tuple[str, str]:
        """Return a malformed ``user-data``, and the line and reason that the installer reports."""
        return _skiff.malformed(answers, how)

    @classmethod
    def install_credentials(cls, answers: Install) -> dict[str, str]:
        """Return the systemd credential that installs and powers off."""
        return {"skiff.install": _skiff.settings(answers)}

    def status(self) -> dict[str, str]:
        """Return the values of ``skiff-status`` by name: IMAGE, VERSION, SLOT, ROOT, VERITY."""
        lines = self.machine.succeed(self.as_root("skiff-status")).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def version(self) -> str:
        """Return the version of the running image."""
        return self.status()["VERSION"]

    def verified(self) -> bool:
        """Return whether dm-verity verifies the root."""
        return self.status()["VERITY"] == "yes"

    def slot(self) -> str:
        """Return the slot that the machine runs from: ``live``, ``a``, ``b`` or ``recovery``."""
        return self.status()["SLOT"]

    def slots(self) -> list[Slot]:
        """Return the slots a and b."""
        status = self.status()
        return [_skiff.slot(name, status[f"SLOT_{name.upper()}"]) for name in ("a", "b")]

    def boot_record(self) -> list[BootRecord]:
        """Return the records of ``/var/lib/skiff/boots``."""
        lines = self.machine.succeed(self.as_root("cat /var/lib/skiff/boots")).splitlines()
        return [_skiff.record(line) for line in lines if line.count(" ") == 5]

    def trust(self, ca_pem: str) -> None:
        """Write the CA to ``/etc/skiff/ca``, and to the disk, which may fail from then on."""
        text = base64.b64encode(ca_pem.encode()).decode()
        self.machine.succeed(
            self.as_root(
                f"mkdir -p /etc/skiff/ca && echo {text} | base64 -d > /etc/skiff/ca/trusted.pem"
                " && sync"
            )
        )

    def upgrade(
        self,
        source: str,
        deadline: Deadline | float | None = None,
        *,
        allow_downgrade: bool = False,
    ) -> str:
        """Run ``skiff-upgrade``."""
        words = ["skiff-upgrade", *(["--allow-downgrade"] if allow_downgrade else []), source]
        with self.machine.timeline.step(f"upgrade from {source}", machine=self.machine.name):
            limit = self.machine.scale.limit(deadline, 120)
            return self._run(shlex.join(words), UpgradeRefusedError, limit)

    @classmethod
    def arch_folder(cls, arch: str | None = None) -> str:
        """Return systemd's name of an architecture; ``%a`` stands for the machine's own."""
        return "%a" if arch is None else arches.of(arch).systemd

    def rollback(self) -> None:
        """Run ``skiff-rollback``."""
        self._run("skiff-rollback", RecoveryRefusedError)

    def wait_good(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the health check and systemd-bless-boot have finished."""
        limit = self.machine.scale.limit(deadline, 60)
        self.machine.wait_for_unit("skiff-health.service", limit)
        self.machine.wait_until_succeeds(
            "test ! -e /run/systemd/generator*/basic.target.wants/systemd-bless-boot.service"
            " || systemctl is-active --quiet systemd-bless-boot.service",
            limit,
        )

    def fall_back(self, deadline: Deadline | float | None = None) -> None:
        """Reboot, wait for one reset per try of the version, then for the system that follows."""
        limit = self.machine.scale.limit(deadline, 400)
        machine = self.machine
        with machine.timeline.step("fall back", machine=machine.name):
            with machine.expecting(GuestError):
                mark = self._restart("systemctl reboot")
                # The reboot by command, and one reset per try.
                for _ in range(1 + _TRIES):
                    mark = self._wait_for_reset(limit, mark)
            # A further reset means that the version got another try: the wait fails.
            with machine.restarting_at_most(0, since=mark):
                self._arrive(limit)

    def choose_entry(self, entry: str, deadline: Deadline | float | None = None) -> None:
        """Let systemd-boot show its menu, and choose the entry by the number of its line."""
        limit = self.machine.scale.limit(deadline, 180)
        title = f"skiff {entry}"
        with self.machine.timeline.step(f"choose {title!r} in the boot menu"):
            mark = self._restart("systemctl reboot --boot-loader-menu=60s")
            self._wait_for_reset(limit, mark)
            console = self.machine.console
            begin = console.mark()
            console.expect(r"Boot in \d+ s\.", limit)
            lines = _skiff.menu(console.since(begin))
            if title not in lines:
                raise GuestError(
                    f"the boot menu has no {title!r}, only: {', '.join(lines)}",
                    evidence=str(self.machine.evidence / "serial.log"),
                )
            # A digit selects that line of the menu, systemd-boot(7).
            console.send(str(lines.index(title) + 1))
            console.press("enter")
            with self.machine.restarting_at_most(0):
                self._arrive(limit)

    def boot_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Select the recovery entry for the next boot only, and reboot."""
        limit = self.machine.scale.limit(deadline, 180)
        with self.machine.timeline.step("boot into recovery", machine=self.machine.name):
            mark = self._restart("bootctl set-oneshot recovery.conf && systemctl reboot")
            mark = self._wait_for_reset(limit, mark)
            with self.machine.restarting_at_most(0, since=mark):
                self.wait_recovery(limit)

    def wait_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Wait for the prompt of recovery, which has the live medium's account, and log in.

        Recovery has to come up by the time the tries of both slots are used up. QEMU may not have
        reported the first reset yet, so one more is allowed.
        """
        with self.machine.restarting_at_most(1 + _TRIES * len(self.slot_names)):
            self._arrive(self.machine.scale.limit(deadline, 180))
        if (slot := self.slot()) != "recovery":
            raise GuestError(
                f"machine {self.machine.name} is in slot {slot}, not in recovery",
                evidence=str(self.machine.evidence / "serial.log"),
            )

    def repair(self, slot: str) -> None:
        """Run ``skiff-recovery repair``."""
        self._run(f"skiff-recovery repair {shlex.quote(slot)}", RecoveryRefusedError)

    def reset(self) -> None:
        """Run ``skiff-recovery reset`` and reboot."""
        limit = self.machine.scale.after(180)
        with self.machine.timeline.step("reset", machine=self.machine.name):
            self._run("skiff-recovery reset", RecoveryRefusedError)
            mark = self._restart("systemctl reboot")
            mark = self._wait_for_reset(limit, mark)
            if self._has_ssh:
                self.machine.ssh.forget_host_key()
            with self.machine.restarting_at_most(0, since=mark):
                self._arrive(limit)

    def slots_written(self) -> list[str]:
        """Return the parts of the disk whose partitions overlap the bytes that were written."""
        serial, *numbers = self.machine.succeed(
            self.as_root(
                "sync; d=$(skiff-status | sed -n 's/^ROOT=//p'); d=${d#/dev/}; d=${d%?};"
                " cd /sys/class/block; echo $(cat $d/serial);"
                " for n in 1 2 3 4 5 6 7 8; do cat $d$n/start $d$n/size; done"
            )
        ).split()
        sectors = [int(number) for number in numbers]
        places = [
            range(512 * start, 512 * (start + size))
            for start, size in zip(sectors[::2], sectors[1::2], strict=True)
        ]
        # The partition table counts as boot: it holds the names of the slots.
        parts = [("boot", range(places[0].start)), *zip(_PARTITIONS, places, strict=True)]
        (disk,) = [disk for disk in self.machine.spec.disks if disk.guest_serial == serial]
        written = self.machine.written(disk.name)
        names = [
            name
            for name, place in parts
            if any(area.start < place.stop and place.start < area.stop for area in written)
        ]
        return list(dict.fromkeys(names))

    def damage(self, slot: str, part: SlotPart = "root") -> None:
        """Overwrite the first MiB of the slot's root, or of its verity hashes."""
        number = {"a": 2, "b": 4}[slot] + {"root": 0, "hashes": 1}[part]
        self.machine.succeed(
            self.as_root(
                "d=$(skiff-status | sed -n 's/^ROOT=//p');"
                f" dd if=/dev/zero of=${{d%?}}{number} bs=1M count=1 conv=fsync 2>/dev/null"
            )
        )

    def damage_state(self) -> None:
        """Overwrite the first MiB of ``/var``: its superblock and the beginning of its journal."""
        # Direct I/O bypasses the mount's copy of the superblock. A clean shutdown would write that back.
        self.machine.succeed(
            self.as_root(
                "sync; disk=$(findmnt -no SOURCE /var);"
                " dd if=/dev/zero of=$disk bs=1M count=1 oflag=direct 2>/dev/null"
            )
        )

    def fill_state(self, keep: int) -> None:
        """Fill ``/var``."""
        # The last MiB is written: what df calls available, fallocate cannot allocate, since the list of
        # the file's extents takes blocks, too (ext4(5)). Nothing has room then, not even root.
        fill = "dd if=/dev/zero of=/var/filled bs=4k oflag=append conv=notrunc status=none || sync"
        self.machine.succeed(
            self.as_root(
                f"fallocate -l $(($(df --output=avail -B1 /var | tail -n 1) - {max(keep, MIB)}))"
                f" /var/filled{'' if keep else f'; {fill}'}"
            )
        )

    def free_state(self) -> None:
        """Remove what fills ``/var``."""
        self.machine.succeed(self.as_root("rm /var/filled"))

    def allow_from(self, version: str) -> None:
        """Write ``/etc/skiff/minimum-version``."""
        self.machine.succeed(
            self.as_root(f"mkdir -p /etc/skiff; echo {version} > /etc/skiff/minimum-version")
        )

    def request_reboot(self) -> str:
        """Return the shell command that reboots; a reboot leaves recovery and its account."""
        command = super().request_reboot()
        self._leave_recovery()
        return command

    def install(
        self,
        answers: Install,
        deadline: Deadline | float | None = None,
        *,
        confirm: bool = True,
    ) -> None:
        """Install over the console, answering the installer's questions as a person would.

        Args:
            answers: The answers.
            confirm: Whether to type the confirmation; if not, ``yes`` is typed, which refuses.
            deadline: The image's own, or 60 s on a good host, by default.

        Raises:
            InstallRefusedError: The installer refused or failed; the error has its own message.
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
        """Install from the running system with the settings of a seed; the machine then powers off.

        Args:
            user_data: The settings, in the format of a seed's ``user-data``.
            deadline: The image's own, or 60 s on a good host, by default.

        Raises:
            InstallRefusedError: The installer refused or failed; the error has its own message.
        """
        limit = self.limit("install", deadline, 60)
        self.machine.ssh.put(user_data, "/run/settings.yaml")
        self._run("skiff-install --settings /run/settings.yaml", InstallRefusedError, limit)

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation reports success on the console.

        Args:
            deadline: From power on; the image's own, or 120 s on a good host, by default.

        Raises:
            InstallRefusedError: The installer refused or failed; the error has its own message.
        """
        with self.machine.timeline.step("install unattended", machine=self.machine.name):
            self._expect(_DONE, self.limit("install", deadline, 120))

    def pairing_code(self, deadline: Deadline | float | None = None) -> str:
        """Read the QR code on the screen."""
        limit = self.limit("login", deadline, 120)
        return self.machine.wait_for_qr(_PAIRING_CODE, limit).removeprefix("skiff-pair:")

    def pair(self, code: str, answers: Install, deadline: Deadline | float | None = None) -> None:
        """Say to the pairing port what ``images/skiff/README.md`` documents."""
        limit = self.limit("install", deadline, 60)
        with self.machine.timeline.step("pair", machine=self.machine.name):
            answer = self._talk(f"pair {code}\n{_skiff.settings(answers)}...\n", limit)
        outcomes = _OUTCOME.findall(answer)
        if not outcomes:
            raise GuestError(
                f"machine {self.machine.name} closed its pairing port without an outcome",
                evidence=answer,
            )
        kind, message = outcomes[-1]
        if kind != "done":
            raise InstallRefusedError(message, evidence=answer)

    def _talk(self, text: str, limit: Deadline) -> str:
        """Send a text to the pairing port, and return what it says until it closes."""
        scope, said = self.machine.scope, b""
        address = self.machine.port(self.pairing_port)
        with scope.alarm() as alarm, socket.create_connection(address) as connection:
            waiter = select.poll()
            waiter.register(connection, select.POLLIN)
            waiter.register(alarm, 0)  # POLLHUP is reported always
            with contextlib.suppress(ConnectionError):
                connection.sendall(text.encode())
                while True:
                    ready = limit.wait(lambda _: bool(waiter.poll(limit.poll_timeout())))
                    scope.check()
                    if not ready:
                        raise WaitTimeoutError(
                            f"machine {self.machine.name} to say how the installation ended",
                            limit,
                            last_output=said.decode(errors="replace"),
                        )
                    if not (chunk := connection.recv(65536)):
                        break
                    said += chunk
            answer = said.decode(errors="replace")
            if not _OUTCOME.search(answer):
                # QEMU's end closes the connection a moment before the machine knows of it.
                waiter.unregister(connection)
                waiter.poll(_MOMENT)
                scope.check()
            return answer

    def _run(
        self, command: str, refusal: type[GuestError], deadline: Deadline | float | None = None
    ) -> str:
        """Run one of the image's own commands and return the outcome that it prints.

        Raises:
            GuestError: The command printed no outcome; ``refusal``: it refused or failed.
        """
        result = self.machine.execute(self.as_root(f"{command} 2>&1"), deadline=deadline)
        outcomes = _OUTCOME.findall(result.stdout)
        if not outcomes:
            raise GuestError(
                f"{command!r} ended with status {result.status} and printed no outcome",
                evidence=result.stdout[-1500:],
            )
        kind, message = outcomes[-1]
        if kind in ("refused", "failed"):
            raise refusal(message, evidence=result.stdout[-1500:])
        return str(message)

    def _restart(self, command: str) -> int:
        """Type a command that restarts the machine; return the monitor's mark from before it."""
        console = self.machine.console
        if not console.logged_in:
            self.login()
        console.leave()
        mark = self.machine.qmp.mark()
        console.send_line(self.as_root(command))
        self._leave_recovery()
        return mark

    def _wait_for_reset(self, limit: Deadline, mark: int) -> int:
        """Wait for a reset after a mark, discard older console output, and return a new mark."""
        self.machine.wait_for_reset(limit, since=mark)
        self.machine.console.skip()
        return self.machine.qmp.mark()

    @property
    def _has_ssh(self) -> bool:
        return any(22 in nic.forward for nic in self.machine.spec.nics)

    def _arrive(self, limit: Deadline) -> None:
        """Wait for the login prompt of the installed system or of recovery, and log in."""
        with self.machine.coming_up():
            prompt = self.machine.console.expect(
                [r"skiff-recovery login: ", r"[\w-]+ login: "], limit
            )
        if self._has_ssh:
            self.machine.ssh.disconnect()
        if prompt.index == 0:
            self._installed = self._installed or self.account
            self.account = self.selection.login.account
            # Recovery has another /var: another host key, and no account of the user.
            self.machine.use_console_shell = True
        self.login(limit)

    def _leave_recovery(self) -> None:
        if self._installed is not None:
            self.account, self._installed = self._installed, None

    _installed: Account | None = None
    """The installed system's account while the machine is in recovery."""

    def _expect(self, pattern: str, limit: Deadline) -> None:
        """Wait for the installer to print a pattern.

        Raises:
            InstallRefusedError: The installer refused or failed instead.
        """
        match = self.machine.console.expect([pattern, _REFUSED], limit)
        if match.index == 1:
            raise InstallRefusedError(
                match.group(2),
                evidence=str(self.machine.evidence / "serial.log"),
            )


if TYPE_CHECKING:

    class _Abilities(
        Verified,
        Installable,
        SeedInstallable,
        CredentialInstallable,
        Pairable,
        MultiArch,
        Rollbackable,
        Recoverable,
        Resettable,
        Protocol,
    ):
        """The abilities that the image declares; mypy checks that the profile has all their words."""

    _: type[_Abilities] = Skiff
