"""The base class of all profiles: the words that every OS family has.

A test says ``machine.os.login()``; only the profile of the family knows how to do that. The words that
some families have are in :mod:`harness.profiles.abilities`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from harness.catalog import Phase, Selection
from harness.console import Dialogue
from harness.deadline import Deadline
from harness.errors import UsageError
from harness.machine.system import Identity, System
from harness.powercut.ext4 import check_ext4
from harness.profiles import _reseed
from harness.profiles.abilities import Slotted, capabilities_with
from harness.profiles.terms import Refusal
from harness.spec import Account, ConsoleDevice, Disk, Firmware, FirmwareKind, MachineSpec, Nic, Tpm

if TYPE_CHECKING:
    from harness.machine import Machine


class MissingWordError(UsageError, AttributeError):
    """A profile lacks the word that a test used; ``hasattr`` answers false."""


def _missing(profile: type[Profile], word: str) -> AttributeError:
    """Return the error for a word that a profile lacks."""
    if word.startswith("_"):
        # Never words: Python and its tools look for these, typing of Python 3.13 while it makes a class.
        return AttributeError(f"{profile.__name__!r} has no attribute {word!r}")
    text = f"profile {profile.name or profile.__name__!r} lacks the word {word!r}"
    if capabilities := capabilities_with(word):
        return MissingWordError(
            f"{text}, which belongs to the capability {' or '.join(capabilities)}",
            hint=f"define {word} in the profile and declare the capability in image.yaml, or run the"
            " test only on images that declare it: @pytest.mark.needs(...)",
        )
    words = [name for name in dir(profile) if not name.startswith("_")]
    near = difflib.get_close_matches(word, words, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return MissingWordError(text, hint=f"{hint}dir(machine.os) lists its words")


if TYPE_CHECKING:
    _Words = type
else:
    # mypy must not see __getattr__: it would accept any word. A profile may inherit protocols, so its
    # metaclass has to derive from theirs.
    class _Words(type(Protocol)):
        """Raises an error that helps when code uses a word that a profile's class lacks."""

        def __getattr__(cls, word: str) -> object:
            raise _missing(cls, word)


class Profile(metaclass=_Words):
    """The words of one OS family, bound to one machine: ``machine.os``.

    Subclasses override the words that their family does differently, and add the words of their
    abilities. :exc:`MissingWordError` is raised for a word that the profile lacks.

    Args:
        machine: The machine.
        selection: The image that the machine was started from.
        account: The account that logs in; the image's own by default.
    """

    name: ClassVar[str] = ""
    keeps_host_key: ClassVar[bool] = True
    """Whether the SSH host key survives a reboot."""
    slot_names: ClassVar[tuple[str, ...]] = ("a", "b")
    """The slots; a fresh installation runs from the first."""
    tries: ClassVar[int | None] = None
    """How many boots of a new version may fail; ``None`` if the system does not count them."""
    state_folder: ClassVar[str] = "/var"
    """A folder below which root can write; it survives reboots and upgrades, but no reset."""
    state_partition: ClassVar[str] = ""
    """The name, in the partition table, of the ext4 file system that holds the state."""
    refusals: ClassVar[Mapping[Refusal, str]] = {}
    """Regular expressions for the system's message, by the reason of a refusal. Any message matches a
    reason that is left out."""
    idle_seconds: ClassVar[float] = 300.0
    """How long a booting guest may make no progress, in seconds of its own clock: it prints nothing but
    repetitions and its kernel's complaints, reads nothing and computes nothing. No healthy boot does so
    for this long: systemd gives up a device after 90 s, and then prints."""
    most_restarts: ClassVar[int] = 10
    """How often a guest may restart while something waits for it to come up. Boot counting needs less:
    three tries for each of two slots, and the reboot that begins it."""

    def __init__(
        self, machine: Machine, selection: Selection, account: Account | None = None
    ) -> None:
        self.machine = machine
        self.selection = selection
        login = selection.login
        self._account = account or login.account
        machine.console.dialogue = Dialogue(
            login_prompt=login.login_prompt,
            password_prompt=login.password_prompt,
            refusal=login.refusal,
            shell_prompt=login.shell_prompt,
            wake=login.wake,
            setting=f"`login` of {selection.path}",
        )

    def __repr__(self) -> str:
        return f"<profile {self.name} of machine {self.machine.name}>"

    if not TYPE_CHECKING:

        def __getattr__(self, word: str) -> object:
            if inspect.getattr_static(type(self), word, None) is not None:
                # A property has raised AttributeError; let the caller see that error.
                return object.__getattribute__(self, word)
            raise _missing(type(self), word)

    @property
    def account(self) -> Account:
        """The account that logs in, on the console and over SSH; a word may set another."""
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
        """Return the spec of a machine that boots an image.

        Args:
            selection: The image.
            files: The image's artifacts by name.
            name: The machine's name.
            medium: Whether the machine has the image's live medium and boots it first.
            disks: Further disks.
            nics: Network interfaces.
            credentials: systemd credentials by name.
            cpus: Virtual CPUs; the image's own number by default.
            memory: RAM in bytes; the image's own size by default.
            display: Whether the machine has a VGA adapter.
            cmdline: Words to append to the kernel's command line; for direct kernel boot only.
            console: The device of the console; the image's own by default.
            tpm: Whether the machine has a TPM, or the TPM itself.

        Raises:
            UsageError: ``cmdline`` was set for an image that does not boot by direct kernel boot.
        """
        arch_image = selection.arch_image
        kind = FirmwareKind(arch_image.firmware)
        all_disks = list(disks)
        if kind is FirmwareKind.KERNEL:
            words = " ".join(filter(None, (arch_image.cmdline, cmdline)))
            firmware = Firmware(kind, files["kernel"], files.get("initrd"), words)
        else:
            if cmdline:
                raise UsageError(
                    f"cmdline requires direct kernel boot, and {selection} boots by {kind.value}",
                    hint="leave cmdline out, or choose an image with firmware: kernel",
                )
            firmware = Firmware(kind)
        if medium and "live" in files:
            live = arch_image.artifacts["live"]
            boots_first = Disk("live", files["live"], live.format, boot_index=0)
            all_disks = [boots_first, *all_disks]
        hardware = selection.machine
        return MachineSpec(
            name=name,
            arch=selection.arch,
            firmware=firmware,
            cpus=hardware.cpus if cpus is None else cpus,
            memory=hardware.memory if memory is None else memory,
            disks=tuple(all_disks),
            nics=tuple(nics),
            console=console or selection.console.device,
            credentials=tuple((credentials or {}).items()),
            display=display,
            baseline=arch_image.baseline,
            tpm=tpm if isinstance(tpm, Tpm) else Tpm() if tpm else None,
        )

    # --- a running machine --------------------------------------------------------------------

    def limit(self, phase: Phase, deadline: Deadline | float | None, default: float) -> Deadline:
        """Return the deadline of a phase.

        Args:
            phase: The phase.
            deadline: The caller's deadline; it takes precedence.
            default: Seconds on a good host, if neither the caller nor the image sets a deadline.
        """
        return self.machine.scale.limit(deadline, self.selection.deadlines.get(phase, default))

    def login(self, deadline: Deadline | float | None = None) -> None:
        """Wait for the login prompt on the console and log in, as ``login`` in image.yaml says.

        Args:
            deadline: The image's own, or 120 s on a good host, by default.
        """
        asks_for_user = self.selection.login.user is not None
        with self.machine.coming_up():
            self.machine.console.login(
                self.account.user if asks_for_user else None,
                self.account.password or None,
                deadline=self.limit("login", deadline, 120),
            )

    def as_root(self, command: str) -> str:
        """Return the shell command that runs ``command`` as root for this account."""
        if self.account.user == "root":
            return command
        return f"sudo -n sh -c {shlex.quote(command)}"

    def request_reboot(self) -> str:
        """Return the shell command that reboots the guest cleanly."""
        return self.as_root("systemctl reboot")

    def unit_state(self, unit: str) -> str:
        """Return the shell command that prints a service's state, such as ``active`` or ``failed``."""
        return f"systemctl show -P ActiveState -- {unit}"

    def reseed(self, seed: str) -> str:
        """Return the command for root's shell that reseeds Linux' random pool at once."""
        return _reseed.command(self.selection.arch, seed)

    def identity(self) -> Identity:
        """Return the identity of the running system."""
        output = self.machine.succeed(
            "cat /etc/machine-id; cat /etc/hostname 2>/dev/null || uname -n;"
            " cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null | cut -d ' ' -f 2 | sort"
        )
        machine_id, hostname, *keys = output.splitlines()
        return Identity(machine_id, hostname, " ".join(keys))

    def wait_running(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the system has started and no service has failed.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: A service has failed.
        """
        self.machine.succeed(
            "systemctl --wait is-system-running", deadline=self.machine.scale.limit(deadline, 60)
        )

    def wait_good(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the system has accepted the running version as good.

        A system that does not count boots accepts a version when the whole system has started.

        Args:
            deadline: 60 s on a good host by default.
        """
        self.wait_running(deadline)

    @classmethod
    def says(cls, reason: Refusal, words: str) -> bool:
        """Return whether the system's message about a refusal states this reason; see `refusals`."""
        return re.search(cls.refusals.get(reason, ""), words) is not None

    def other_slot(self: Slotted) -> str:
        """Return the slot that is not running; an upgrade writes it."""
        (other,) = set(self.slot_names) - {self.slot()}
        return other

    @classmethod
    def check_state(cls, disk: Path) -> None:
        """Check on the host that a power cut left the state on a disk intact.

        Args:
            disk: The disk as a raw file; nothing may write to it meanwhile.

        Raises:
            GuestError: The state is damaged.
            UsageError: The profile does not say where the state is.
        """
        if not cls.state_partition:
            raise UsageError(
                f"profile {cls.name!r} does not say which partition holds its state",
                hint="set state_partition, or override check_state() if it is not ext4",
            )
        check_ext4(disk, cls.state_partition)


if TYPE_CHECKING:
    _: type[System] = Profile
