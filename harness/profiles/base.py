"""What a profile is: the words of :class:`Profile` for one OS family.

A scenario says ``machine.os.install(...)``; how that family does it stands in its profile and
nowhere else. What a family cannot do keeps the default below, which says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

from harness.catalog import Selection
from harness.deadline import Deadline, of
from harness.errors import UsageError
from harness.spec import ConsoleDevice, Disk, Firmware, FirmwareKind, MachineSpec, Nic

if TYPE_CHECKING:
    from harness.machine import Machine


@dataclass(frozen=True, slots=True)
class Account:
    """Who logs in.

    Attributes:
        user: The name.
        password: The password on the console; empty if there is none.
    """

    user: str
    password: str = ""


@dataclass(frozen=True, slots=True)
class Install:
    """What a user tells an installer.

    Attributes:
        disk: The target, by serial or by path in the guest.
        hostname: The installed system's name.
        user: The account to make; it may become root by sudo.
        key: The account's SSH public key; empty for none.
        password: The account's password on the console; empty for none.
    """

    disk: str
    hostname: str = "harbour"
    user: str = "admin"
    key: str = ""
    password: str = ""


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

    def __init__(
        self, machine: Machine, selection: Selection, account: Account | None = None
    ) -> None:
        self.machine = machine
        self.selection = selection
        login = selection.image.login
        self.account = account or Account(login.user, login.password)

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
            cpus=cpus or machine.cpus,
            memory=memory or machine.memory,
            disks=tuple(all_disks),
            nics=tuple(nics),
            console=console or selection.image.console.device,
            credentials=tuple((credentials or {}).items()),
            display=display,
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

    def install_from(self, user_data: str, deadline: Deadline | float | None = None) -> None:
        """Install from settings, as a seed has them, that lie in a file of the running system."""
        self._cannot("install from settings by hand")

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation says that it is done."""
        self._cannot("install unattended")

    def upgrade(self, source: str) -> None:
        """Upgrade the installed system from ``source``."""
        self._cannot("upgrade")

    def rollback(self) -> None:
        """Go back to the other slot."""
        self._cannot("rollback")

    def reset(self) -> None:
        """Bring the machine back to the state right after installation."""
        self._cannot("reset")

    def _cannot(self, verb: str) -> NoReturn:
        raise self._unable(verb)

    @classmethod
    def _unable(cls, verb: str) -> UsageError:
        return UsageError(
            f"profile {cls.name!r} does not know how to {verb}",
            hint="declare the capability in image.yaml and the verb in the profile, or select"
            " scenarios by capability: @pytest.mark.needs(...)",
        )
