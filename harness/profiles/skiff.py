"""The skiff image: an immutable Debian in two slots, made of systemd's own parts.

What its installer asks and says is documented in ``images/skiff/README.md``.
"""

from __future__ import annotations

import base64
import re
import shlex
from typing import ClassVar, Final

from harness.deadline import Deadline, of
from harness.errors import (
    GuestError,
    InstallRefusedError,
    RecoveryRefusedError,
    UpgradeRefusedError,
)
from harness.profiles import _skiff
from harness.profiles.base import Profile
from harness.profiles.terms import (
    Account,
    BootRecord,
    Install,
    Malformed,
    Slot,
    SlotPart,
)

CONFIRMATION: Final = "INSTALL"
"""What the installer wants typed before it writes."""

_PARTITIONS: Final = ("boot", "a", "a", "b", "b", "oem", "recovery", "recovery")
"""What the disk's partitions belong to, all but the last, ``var``: the ESP, then root and verity of each
slot, what the installer recorded, root and verity of recovery."""

_OUTCOME: Final = re.compile(r"skiff-[a-z]+: (done|already|refused|failed): ([^\r\n]*)")
_REFUSED: Final = r"skiff-install: (refused|failed): ([^\r\n]*)\r?\n"
_DONE: Final = r"skiff-install: (done): ([^\r\n]*)\r?\n"


class Skiff(Profile):
    """The words for skiff."""

    name = "skiff"
    tries: ClassVar[int] = 3
    state_partition = "var"
    update_files: ClassVar = {
        "root": "*.root.raw",
        "kernel": "*.efi",
        "signature": "SHA256SUMS.gpg",
    }
    refusals: ClassVar = {
        "signature": "the signature of SHA256SUMS is wrong",
        "space": "no space left",
        "older": "is older than",
        "too small": r"is too small: 2\.5 GiB needed, 0\.5 GiB found",
        "no such disk": r"^no disk .*; disks here: ",
        "not confirmed": "^not confirmed$",
        "the medium": "is the medium this system runs from",
    }

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
        return {"user-data": _skiff.settings(answers)}

    @classmethod
    def malformed_seed(cls, answers: Install, how: Malformed) -> tuple[str, str]:
        """Return a seed that is spoilt, and the line and the reason that the installer names."""
        return _skiff.malformed(answers, how)

    @classmethod
    def install_credentials(cls, answers: Install) -> dict[str, str]:
        """Return the credential that installs unattended and powers off."""
        return {"skiff.install": _skiff.settings(answers)}

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
        """Return the slot: ``live``, ``a``, ``b`` or ``recovery``."""
        return self.status()["SLOT"]

    def slots(self) -> list[Slot]:
        """Return the slots a and b."""
        told = self.status()
        return [_skiff.slot(name, told[f"SLOT_{name.upper()}"]) for name in ("a", "b")]

    def boot_record(self) -> list[BootRecord]:
        """Return what ``/var/lib/skiff/boots`` holds."""
        lines = self.machine.succeed(self.as_root("cat /var/lib/skiff/boots")).splitlines()
        return [_skiff.record(line) for line in lines if line.count(" ") == 5]

    def trust(self, ca_pem: str) -> None:
        """Put a CA into ``/etc/skiff/ca``."""
        text = base64.b64encode(ca_pem.encode()).decode()
        self.machine.succeed(
            self.as_root(
                f"mkdir -p /etc/skiff/ca && echo {text} | base64 -d > /etc/skiff/ca/trusted.pem"
            )
        )

    def upgrade(
        self,
        source: str,
        *,
        allow_downgrade: bool = False,
        deadline: Deadline | float | None = None,
    ) -> str:
        """Run ``skiff-upgrade``."""
        words = ["skiff-upgrade", *(["--allow-downgrade"] if allow_downgrade else []), source]
        with self.machine.timeline.step(f"upgrade from {source}", machine=self.machine.name):
            return self._tell(shlex.join(words), UpgradeRefusedError, of(deadline, 120))

    def rollback(self) -> None:
        """Run ``skiff-rollback``."""
        self._tell("skiff-rollback", RecoveryRefusedError)

    def wait_good(self, deadline: Deadline | float | None = None) -> None:
        """Wait until systemd-bless-boot and the health check are through."""
        limit = of(deadline, 60)
        self.machine.wait_for_unit("skiff-health.service", limit)
        self.machine.wait_until_succeeds(
            "test ! -e /run/systemd/generator*/basic.target.wants/systemd-bless-boot.service"
            " || systemctl is-active --quiet systemd-bless-boot.service",
            limit,
        )

    def fall_back(self, deadline: Deadline | float | None = None) -> None:
        """Reboot, see the version restart once a try, and wait for what comes after it."""
        limit = of(deadline, 400)
        machine = self.machine
        with machine.timeline.step("fall back", machine=machine.name):
            with machine.expecting(GuestError):
                mark = self._restart("systemctl reboot")
                # The reboot that was asked for, and one restart a try.
                for _ in range(1 + self.tries):
                    mark = self._wait_for_reset(limit, mark)
            # No more failures are expected: a version that is tried once more ends the wait.
            with machine.restarting_at_most(0, since=mark):
                self._arrive(limit)

    def choose_entry(self, entry: str, deadline: Deadline | float | None = None) -> None:
        """Have systemd-boot show its menu, and choose by the number of the line."""
        limit = of(deadline, 180)
        title = f"skiff {entry}"
        with self.machine.timeline.step(f"choose {title!r} in the boot menu"):
            mark = self._restart("systemctl reboot --boot-loader-menu=60s")
            self._wait_for_reset(limit, mark)
            console = self.machine.console
            begin = console.mark()
            console.expect(r"Boot in \d+ s\.", limit)
            lines = _skiff.menu(console.since(begin))
            if title not in lines:
                raise GuestError(f"the boot menu has no {title!r}: {', '.join(lines)}")
            # A digit goes to that line of the menu, systemd-boot(7).
            console.send(str(lines.index(title) + 1))
            console.press("enter")
            with self.machine.restarting_at_most(0):
                self._arrive(limit)

    def boot_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Choose the recovery entry for the next boot alone, and reboot."""
        limit = of(deadline, 180)
        with self.machine.timeline.step("boot into recovery", machine=self.machine.name):
            mark = self._restart("bootctl set-oneshot recovery.conf && systemctl reboot")
            mark = self._wait_for_reset(limit, mark)
            with self.machine.restarting_at_most(0, since=mark):
                self.wait_recovery(limit)

    def wait_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Wait for the prompt of recovery, which has the live medium's login.

        It has to come up when the tries of both slots are used up; the reset that begins it may not have
        been told of yet.
        """
        with self.machine.restarting_at_most(1 + self.tries * len(self.slot_names)):
            self._arrive(of(deadline, 180))
        if (slot := self.slot()) != "recovery":
            raise GuestError(f"machine {self.machine.name} is in slot {slot}, not in recovery")

    def repair(self, slot: str) -> None:
        """Run ``skiff-recovery repair``."""
        self._tell(f"skiff-recovery repair {shlex.quote(slot)}", RecoveryRefusedError)

    def reset(self) -> None:
        """Run ``skiff-recovery reset`` and restart."""
        limit = of(None, 180)
        with self.machine.timeline.step("reset", machine=self.machine.name):
            self._tell("skiff-recovery reset", RecoveryRefusedError)
            mark = self._restart("systemctl reboot")
            mark = self._wait_for_reset(limit, mark)
            if self._has_ssh:
                self.machine.ssh.forget_host_key()
            with self.machine.restarting_at_most(0, since=mark):
                self._arrive(limit)

    def slots_written(self) -> list[str]:
        """Compare what was written to the disk with where its partitions lie."""
        serial, *numbers = self.machine.succeed(
            self.as_root(
                "sync; d=$(skiff-status | sed -n 's/^ROOT=//p'); d=${d#/dev/}; d=${d%?};"
                " cd /sys/class/block; echo $(cat $d/serial);"
                " for n in 1 2 3 4 5 6 7 8; do cat $d$n/start $d$n/size; done"
            )
        ).split()
        sectors = [int(each) for each in numbers]
        places = [
            range(512 * start, 512 * (start + size))
            for start, size in zip(sectors[::2], sectors[1::2], strict=True)
        ]
        # The partition table leads to what boots: slots have their names there.
        named = [("boot", range(places[0].start)), *zip(_PARTITIONS, places, strict=True)]
        (disk,) = [each for each in self.machine.spec.disks if each.guest_serial == serial]
        written = self.machine.written(disk.name)
        found = [
            name
            for name, place in named
            if any(each.start < place.stop and place.start < each.stop for each in written)
        ]
        return list(dict.fromkeys(found))

    def damage(self, slot: str, part: SlotPart = "root") -> None:
        """Overwrite the first MiB of the slot's root, or of its verity data."""
        number = {"a": 2, "b": 4}[slot] + {"root": 0, "hashes": 1}[part]
        self.machine.succeed(
            self.as_root(
                "d=$(skiff-status | sed -n 's/^ROOT=//p');"
                f" dd if=/dev/zero of=${{d%?}}{number} bs=1M count=1 conv=fsync 2>/dev/null"
            )
        )

    def damage_state(self) -> None:
        """Overwrite the first MiB of ``/var``: its super block and its journal's beginning."""
        # Beyond the mount's own copy of the super block, which an orderly end would write back.
        self.machine.succeed(
            self.as_root(
                "sync; disk=$(findmnt -no SOURCE /var);"
                " dd if=/dev/zero of=$disk bs=1M count=1 oflag=direct 2>/dev/null"
            )
        )

    def fill_state(self, keep: int) -> None:
        """Fill ``/var``."""
        self.machine.succeed(
            self.as_root(
                f"fallocate -l $(($(df --output=avail -B1 /var | tail -n 1) - {keep})) /var/filled"
            )
        )

    def allow_from(self, version: str) -> None:
        """Write ``/etc/skiff/minimum-version``."""
        self.machine.succeed(
            self.as_root(f"mkdir -p /etc/skiff; echo {version} > /etc/skiff/minimum-version")
        )

    def request_reboot(self) -> str:
        """Return the command that reboots; what comes after recovery has its own account."""
        command = super().request_reboot()
        self._leave_recovery()
        return command

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
        self._tell("skiff-install --settings /run/settings.yaml", InstallRefusedError, limit)

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation says on the console that it is done.

        Args:
            deadline: From power on; 120 s on a good host by default.

        Raises:
            InstallRefusedError: if the installer refuses or fails; its own words.
        """
        with self.machine.timeline.step("install unattended", machine=self.machine.name):
            self._expect(_DONE, self.limit("install", deadline, 120))

    def _tell(
        self, command: str, refusal: type[GuestError], deadline: Deadline | float | None = None
    ) -> str:
        """Run one of the image's own commands and return what it says that it did."""
        told = self.machine.execute(self.as_root(f"{command} 2>&1"), deadline=deadline)
        found = _OUTCOME.findall(told.output)
        if not found:
            raise GuestError(
                f"{command!r} ended with status {told.status} and told no outcome",
                evidence=told.output[-1500:],
            )
        if found[-1][0] in ("refused", "failed"):
            raise refusal(found[-1][1], evidence=told.output[-1500:])
        return str(found[-1][1])

    def _restart(self, command: str) -> int:
        """Type a command that restarts the machine; return a mark of the monitor from before."""
        console = self.machine.console
        if not console.logged_in:
            self.login()
        console.leave()
        mark = self.machine.qmp.mark()
        console.send_line(self.as_root(command))
        self._leave_recovery()
        return mark

    def _wait_for_reset(self, limit: Deadline, mark: int) -> int:
        """Wait for a reset after a mark; what was said before it does not count any more."""
        self.machine.wait_for_reset(limit, since=mark)
        self.machine.console.skip()
        return self.machine.qmp.mark()

    @property
    def _has_ssh(self) -> bool:
        return any(22 in nic.forward for nic in self.machine.spec.nics)

    def _arrive(self, limit: Deadline) -> None:
        """Wait for the login prompt of whatever was booted, and log in."""
        with self.machine.coming_up():
            found = self.machine.console.expect(
                [r"skiff-recovery login: ", r"[\w-]+ login: "], limit
            )
        if self._has_ssh:
            self.machine.ssh.disconnect()
        if found.index == 0:
            self._installed = self._installed or self.account
            login = self.selection.image.login
            self.account = Account(login.user, login.password)
            # Its /var is not the system's: it has another host key, and no user.
            self.machine.use_console_shell = True
        self.login(limit)

    def _leave_recovery(self) -> None:
        if self._installed is not None:
            self.account, self._installed = self._installed, None

    _installed: Account | None = None
    """The account of the installed system, while the machine is in recovery."""

    def _expect(self, pattern: str, limit: Deadline) -> None:
        found = self.machine.console.expect([pattern, _REFUSED], limit)
        if found.index == 1:
            raise InstallRefusedError(
                found.group(2),
                evidence=str(self.machine.evidence / "serial.log"),
            )
