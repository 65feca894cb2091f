"""What a profile is: the words of :class:`Profile` for one OS family.

A scenario says ``machine.os.install(...)``; how that family does it stands in its profile and
nowhere else. What a family cannot do keeps the default below, which says so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

from harness.catalog import Selection
from harness.crash.ext4 import check_ext4
from harness.deadline import Deadline, of
from harness.errors import UsageError
from harness.profiles.terms import (
    Account,
    BootRecord,
    Identity,
    Install,
    Malformed,
    Refusal,
    Slot,
    SlotPart,
    UpdateFile,
)
from harness.spec import ConsoleDevice, Disk, Firmware, FirmwareKind, MachineSpec, Nic, Tpm

if TYPE_CHECKING:
    from harness.machine import Machine


class Profile:
    """The words for one OS family, bound to one machine.

    Args:
        machine: The machine that runs it.
        selection: The image it came from.
        account: Who logs in; the image's own login by default.
    """

    name: ClassVar[str] = ""
    keeps_host_key: ClassVar[bool] = True
    """Whether the SSH host key outlives a reboot."""
    slot_names: ClassVar[tuple[str, ...]] = ("a", "b")
    """The slots; the first is the one that a fresh system runs from."""
    tries: ClassVar[int | None] = None
    """How many boots a new version may fail; ``None`` where the system does not count them."""
    state_folder: ClassVar[str] = "/var"
    """A folder, below which root can write, that outlives reboots and upgrades but no reset."""
    state_partition: ClassVar[str] = ""
    """Name, in the partition table, of the ext4 file system with what a machine keeps."""
    update_files: ClassVar[Mapping[UpdateFile, str]] = {}
    """The names of an update's files, as shell patterns. An update that is one file has its name
    for each of them; what it does not have is left out."""
    refusals: ClassVar[Mapping[Refusal, str]] = {}
    """What the system's words say of each reason, as regular expressions; those left out are not
    looked for, so that any refusal will do."""
    idle_seconds: ClassVar[float] = 300.0
    """How long a guest that comes up may neither print nor compute, in seconds of its own clock. No boot
    that goes on does so: systemd gives up a device after 90 s, and DHCP clients print or try again."""

    def __init__(
        self, machine: Machine, selection: Selection, account: Account | None = None
    ) -> None:
        self.machine = machine
        self.selection = selection
        login = selection.image.login
        self._account = account or Account(login.user, login.password)

    @property
    def account(self) -> Account:
        """Who logs in, on the console and over SSH; a word that changes that sets it."""
        return self._account

    @account.setter
    def account(self, account: Account) -> None:
        self._account = account
        self.machine.log_in_as(account.user)

    # --- before a machine exists --------------------------------------------------------------

    @classmethod
    def credentials(cls, authorized_key: str) -> dict[str, str]:
        """Return the credentials that let the run's key log in (``systemd.system-credentials(7)``)."""
        return {"ssh.authorized_keys.root": authorized_key}

    @classmethod
    def spec(
        cls,
        selection: Selection,
        files: Mapping[str, Path],
        *,
        name: str,
        medium: bool = True,
        disks: Sequence[Disk] = (),
        nics: Sequence[Nic] = (Nic(),),
        credentials: Mapping[str, str] | None = None,
        cpus: int | None = None,
        memory: int | None = None,
        display: bool = False,
        cmdline: str = "",
        console: ConsoleDevice | None = None,
        tpm: bool | Tpm = False,
    ) -> MachineSpec:
        """Return the spec of a machine that boots this image.

        Args:
            selection: The image, arch, version and variant.
            files: The image's artifacts by name.
            name: The machine's name.
            medium: Whether the image's live medium is in the machine, and booted first.
            disks: Further disks.
            nics: Network interfaces.
            credentials: systemd credentials by name.
            cpus: Virtual CPUs; the image's own number by default.
            memory: Bytes; the image's own size by default.
            display: Whether it has a VGA adapter.
            cmdline: Words to add to the kernel's command line; direct kernel boot only.
            console: The device of the console; the image's own by default.
            tpm: Whether it has a TPM; or which.
        """
        entry = selection.entry
        kind = FirmwareKind(entry.firmware)
        all_disks = list(disks)
        if kind is FirmwareKind.KERNEL:
            words = " ".join(filter(None, (entry.cmdline, cmdline)))
            firmware = Firmware(kind, files["kernel"], files.get("initrd"), words)
        else:
            if cmdline:
                raise UsageError(
                    "a kernel command line can be given to images that boot by direct kernel only"
                )
            firmware = Firmware(kind)
        if medium and "live" in files:
            live = entry.artifacts["live"]
            boots_first = Disk("live", files["live"], live.format, boot_index=0)
            all_disks = [boots_first, *all_disks]
        machine = selection.image.machine
        return MachineSpec(
            name=name,
            arch=selection.arch,
            firmware=firmware,
            cpus=machine.cpus if cpus is None else cpus,
            memory=machine.memory if memory is None else memory,
            disks=tuple(all_disks),
            nics=tuple(nics),
            console=console or selection.image.console.device,
            credentials=tuple((credentials or {}).items()),
            display=display,
            tpm=tpm if isinstance(tpm, Tpm) else Tpm() if tpm else None,
        )

    # --- a machine that runs ------------------------------------------------------------------

    def limit(
        self,
        what: Literal["login", "ready", "install"],
        deadline: Deadline | float | None,
        default: float,
    ) -> Deadline:
        """Return a deadline: the given one, else the image's own for ``what``, else the default."""
        return of(deadline, self.selection.image.deadlines.get(what, default))

    def login(self, deadline: Deadline | float | None = None) -> None:
        """Log in on the console, waiting for the prompt.

        Args:
            deadline: The image's own, or 120 s on a good host, by default.
        """
        with self.machine.coming_up():
            self.machine.console.login(
                self.account.user,
                self.account.password or None,
                prompt=self.selection.image.login.shell_prompt,
                deadline=self.limit("login", deadline, 120),
            )

    def as_root(self, command: str) -> str:
        """Return the command that does ``command`` as root for this account."""
        if self.account.user == "root":
            return command
        return f"sudo -n sh -c {shlex.quote(command)}"

    def request_reboot(self) -> str:
        """Return the command that reboots the guest in order."""
        return self.as_root("systemctl reboot")

    def unit_state(self, unit: str) -> str:
        """Return the command that prints ``active`` or ``failed`` for a service."""
        return f"systemctl show -P ActiveState -- {unit}"

    def identity(self) -> Identity:
        """Return who the running system is."""
        told = self.machine.succeed(
            "cat /etc/machine-id; cat /etc/hostname 2>/dev/null || uname -n;"
            " cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null | cut -d ' ' -f 2 | sort"
        )
        machine_id, hostname, *keys = told.splitlines()
        return Identity(machine_id, hostname, " ".join(keys))

    def wait_running(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the system has started as a whole, with nothing failed.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: if something has failed.
        """
        self.machine.succeed("systemctl --wait is-system-running", deadline=of(deadline, 60))

    @classmethod
    def says(cls, reason: Refusal, words: str) -> bool:
        """Whether the system's words about a refusal give this reason; see :attr:`refusals`."""
        return re.search(cls.refusals.get(reason, ""), words) is not None

    def other_slot(self) -> str:
        """Return the slot that does not run: where an upgrade goes."""
        (other,) = set(self.slot_names) - {self.slot()}
        return other

    @classmethod
    def check_state(cls, disk: Path) -> None:
        """Check on the host that what a machine keeps is whole on its disk after a power cut.

        Args:
            disk: The disk, raw; nobody writes to it.

        Raises:
            GuestError: if it is damaged.
        """
        if not cls.state_partition:
            raise UsageError(
                f"profile {cls.name!r} does not say where its state is",
                hint="set state_partition, or override check_state() if it is not ext4",
            )
        check_ext4(disk, cls.state_partition)

    # --- what some families can do ------------------------------------------------------------

    def version(self) -> str:
        """Return the version of the running image."""
        self._cannot("version")

    def slot(self) -> str:
        """Return the slot the machine runs from: ``live``, ``a``, ``b``, ``recovery``."""
        self._cannot("slot")

    def verified(self) -> bool:
        """Whether what is read from the root is checked."""
        self._cannot("tell whether the root is verified")

    def install(
        self,
        answers: Install,
        *,
        confirm: bool = True,
        deadline: Deadline | float | None = None,
    ) -> None:
        """Install over the console; with ``confirm`` false, answer its last question by no."""
        self._cannot("install")

    @classmethod
    def seed(cls, answers: Install) -> dict[str, str]:
        """Return the files of a NoCloud seed that installs unattended and powers off."""
        raise cls._unable("install from a seed")

    @classmethod
    def install_credentials(cls, answers: Install) -> dict[str, str]:
        """Return the systemd credentials that install unattended and power off."""
        raise cls._unable("install by credentials")

    @classmethod
    def malformed_seed(cls, answers: Install, how: Malformed) -> tuple[str, str]:
        """Return the ``user-data`` of a seed that is spoilt, and a regular expression for the reason."""
        raise cls._unable("spoil a seed")

    def install_from(self, user_data: str, deadline: Deadline | float | None = None) -> None:
        """Install from settings, as a seed has them, that lie in a file of the running system."""
        self._cannot("install from settings by hand")

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation says that it is done."""
        self._cannot("install unattended")

    def slots(self) -> list[Slot]:
        """Return all slots that can be upgraded, in order; see :data:`SlotState`."""
        self._cannot("list slots")

    def trust(self, ca_pem: str) -> None:
        """Let upgrades trust servers whose certificate comes from this CA, given as PEM."""
        self._cannot("trust a CA")

    def upgrade(
        self,
        source: str,
        *,
        allow_downgrade: bool = False,
        deadline: Deadline | float | None = None,
    ) -> str:
        """Install what ``source`` offers into the other slot; a reboot then runs it.

        Args:
            source: ``https://host/path/`` or ``oci://host/repository:tag``.
            allow_downgrade: Whether an older version than the running one will do.
            deadline: 120 s on a good host by default.

        Returns:
            The system's own words about what it did; that it had nothing to do is fine.

        Raises:
            UpgradeRefusedError: if the system refuses or fails; its own words.
        """
        self._cannot("upgrade")

    def wait_good(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the running version has shown that it boots and is on trial no more.

        Where no boots are counted that is when the system has started as a whole.

        Args:
            deadline: 60 s on a good host by default.
        """
        self.wait_running(deadline)

    def fall_back(self, deadline: Deadline | float | None = None) -> None:
        """Reboot into a version that fails, and wait until the machine has given it up by itself.

        The machine is then in the version before, or in recovery, and logged in.

        Args:
            deadline: 400 s on a good host by default.
        """
        self._cannot("wait for a fallback")

    def boot_record(self) -> list[BootRecord]:
        """Return what the system remembers of its boots, oldest first."""
        self._cannot("tell of its boots")

    def rollback(self) -> None:
        """Let the other slot be booted from the next reboot on.

        Raises:
            RecoveryRefusedError: if it holds nothing that boots; the system's own words.
        """
        self._cannot("rollback")

    def choose_entry(self, entry: str, deadline: Deadline | float | None = None) -> None:
        """Reboot, choose an entry of the boot menu on the console, and wait until it is ready.

        Args:
            entry: A version, or ``recovery``.
            deadline: 180 s on a good host by default.
        """
        self._cannot("choose a boot entry")

    def boot_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Reboot into recovery by command, and log in there on the console.

        Args:
            deadline: 180 s on a good host by default.
        """
        self._cannot("boot into recovery")

    def wait_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the machine, which is restarting, is in recovery, and log in there.

        Args:
            deadline: 180 s on a good host by default.
        """
        self._cannot("tell that it is in recovery")

    def repair(self, slot: str) -> None:
        """Write the version that was installed first into a slot, from recovery; a reboot runs it.

        Raises:
            RecoveryRefusedError: if the system refuses or fails; its own words.
        """
        self._cannot("repair a slot")

    def reset(self) -> None:
        """Bring the machine back to how it was after installation, from the system or from recovery.

        The state is gone and the system has another identity, but for the hostname and the account. It
        returns when that is logged in on the console, in the slot that was last good.

        Raises:
            RecoveryRefusedError: if the system refuses or fails; its own words.
        """
        self._cannot("reset")

    # --- what tests do to a system ------------------------------------------------------------

    def slots_written(self) -> list[str]:
        """Return what was written to since the machine started, in the order of the disk.

        Slots by their names, ``boot`` for what boots them and names them, ``recovery``, and whatever
        else outlives a reset; not the state. Empty if each of their bytes is as it was then.
        """
        self._cannot("tell what of its slots was written")

    def damage(self, slot: str, part: SlotPart = "root") -> None:
        """Overwrite the first MiB of a slot, or of what checks it; it may be the one that runs."""
        self._cannot("find the disk under a slot")

    def damage_state(self) -> None:
        """Overwrite the head of the file system of the state, so that it does not mount again."""
        self._cannot("find the disk under its state")

    def fill_state(self, keep: int) -> None:
        """Fill the file system of the state but for ``keep`` bytes."""
        self._cannot("fill its state")

    def allow_from(self, version: str) -> None:
        """Let upgrades refuse what is older than ``version``."""
        self._cannot("forbid old versions")

    def _cannot(self, verb: str) -> NoReturn:
        raise self._unable(verb)

    @classmethod
    def _unable(cls, verb: str) -> UsageError:
        return UsageError(
            f"profile {cls.name!r} does not know how to {verb}",
            hint="declare the capability in image.yaml and the verb in the profile, or select"
            " scenarios by capability: @pytest.mark.needs(...)",
        )
