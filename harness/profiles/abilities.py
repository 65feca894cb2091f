"""The abilities that only some OS families have: one small protocol per ability.

Each protocol adds its words to :class:`~harness.machine.system.System`, the words of every OS. A test
names the abilities that it uses in an annotation, and mypy then rejects any other word::

    @pytest.mark.needs("upgrade")
    def test_an_upgrade(lab: Lab) -> None:
        machine: Machine[Upgradable] = lab.fork(installed)
        machine.os.upgrade("https://...")

A test that uses two abilities combines them: ``class Subject(Upgradable, Resettable, Protocol): ...``.

A profile has an ability if it defines the words; it need not name the protocol. :data:`ABILITIES` maps
the capabilities of an image to the protocols that its profile has to satisfy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized
from typing import ClassVar, Final, Protocol

from typing_extensions import get_protocol_members, is_protocol

from harness.deadline import Deadline
from harness.machine.system import System
from harness.profiles.terms import (
    BootRecord,
    Install,
    Malformed,
    Refusal,
    Slot,
    SlotPart,
    UpdateFile,
)

# --- words that several abilities share -----------------------------------------------------------


class Versioned(System, Protocol):
    """An OS that knows its version."""

    def version(self) -> str:
        """Return the version of the running image."""


class Slotted(System, Protocol):
    """An OS that runs from one of several slots."""

    slot_names: ClassVar[tuple[str, ...]]
    """The slots; a fresh installation runs from the first."""

    def slot(self) -> str:
        """Return the slot that the machine runs from: ``live``, ``a``, ``b``, ``recovery``."""

    def other_slot(self) -> str:
        """Return the slot that is not running; an upgrade writes it."""


class SlotLister(Slotted, Protocol):
    """An OS that lists its slots."""

    def slots(self) -> list[Slot]:
        """Return all slots that can be upgraded, in order; see :data:`SlotState`."""


class BootMenu(System, Protocol):
    """An OS with a boot menu on its console."""

    def choose_entry(self, entry: str, deadline: Deadline | float | None = None) -> None:
        """Reboot, choose an entry of the boot menu on the console, and wait until it is ready.

        Args:
            entry: A version, or ``recovery``.
            deadline: 180 s on a good host by default.
        """


class Refuser(System, Protocol):
    """An OS that says why it refuses."""

    @classmethod
    def says(cls, reason: Refusal, words: str) -> bool:
        """Return whether the system's message about a refusal states this reason."""


class SlotDamage(System, Protocol):
    """An OS whose slots a test can damage."""

    def damage(self, slot: str, part: SlotPart = "root") -> None:
        """Overwrite the first MiB of a part of a slot; the slot may be the running one."""


# --- abilities ------------------------------------------------------------------------------------


class Verified(System, Protocol):
    """An OS that verifies its root."""

    def verified(self) -> bool:
        """Return whether reads from the root are verified."""


class Installable(Versioned, Slotted, Refuser, Protocol):
    """An OS that installs from its live medium over the console."""

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
            confirm: Whether to confirm the installer's last question; if not, the answer is no.
            deadline: The image's own, or 60 s on a good host, by default.

        Raises:
            InstallRefusedError: The installer refused or failed; the error has its own message.
        """


class UnattendedInstallable(System, Protocol):
    """An OS that installs without questions."""

    def wait_installed(self, deadline: Deadline | float | None = None) -> None:
        """Wait until an unattended installation reports success.

        Args:
            deadline: From power on; the image's own, or 120 s on a good host, by default.

        Raises:
            InstallRefusedError: The installer refused or failed; the error has its own message.
        """


class SeedInstallable(UnattendedInstallable, Protocol):
    """An OS that installs without questions from a NoCloud seed."""

    @classmethod
    def seed(cls, answers: Install) -> dict[str, str]:
        """Return the files of a NoCloud seed that installs and powers off."""

    @classmethod
    def malformed_seed(cls, answers: Install, how: Malformed) -> tuple[str, str]:
        """Return a malformed ``user-data``, and a regular expression for the installer's reason."""

    def install_from(self, user_data: str, deadline: Deadline | float | None = None) -> None:
        """Install from the running system with the settings of a seed; the machine then powers off.

        Args:
            user_data: The settings, in the format of a seed's ``user-data``.
            deadline: The image's own, or 60 s on a good host, by default.

        Raises:
            InstallRefusedError: The installer refused or failed; the error has its own message.
        """


class CredentialInstallable(UnattendedInstallable, Protocol):
    """An OS that installs without questions from systemd credentials."""

    @classmethod
    def install_credentials(cls, answers: Install) -> dict[str, str]:
        """Return the systemd credentials that install and power off."""


class Pairable(UnattendedInstallable, Refuser, Protocol):
    """An OS that installs with settings that arrive with the pairing code from its screen."""

    pairing_port: ClassVar[int]
    """The TCP port at which it takes the code and the settings."""

    def pairing_code(self, deadline: Deadline | float | None = None) -> str:
        """Wait for the pairing code on the screen of the live medium, and return it.

        Args:
            deadline: From power on; the image's own for a login, or 120 s on a good host, by default.

        Raises:
            UsageError: The machine has no display.
            WaitTimeoutError: The deadline passed.
        """

    def pair(self, code: str, answers: Install, deadline: Deadline | float | None = None) -> None:
        """Send a code and the settings, and wait until the system is installed; it then powers off.

        Args:
            code: The code.
            answers: The settings.
            deadline: The image's own, or 60 s on a good host, by default.

        Raises:
            InstallRefusedError: The code is wrong, or the installer refused or failed; the error has the
                system's own message.
            UsageError: The machine forwards no port to :attr:`pairing_port`.
        """


class Upgradable(Versioned, SlotLister, Refuser, Protocol):
    """An OS that upgrades into the slot that is not running."""

    tries: ClassVar[int | None]
    """How many boots of a new version may fail; ``None`` if the system does not count them."""
    update_files: ClassVar[Mapping[UpdateFile, str]]
    """Shell patterns for the names of an update's files. An update that is one file has the same
    pattern for each entry; entries that an update does not have are left out."""

    def boot_record(self) -> list[BootRecord]:
        """Return the system's log of its boots, oldest first."""

    def trust(self, ca_pem: str) -> None:
        """Let upgrades trust servers whose certificate this CA has signed.

        Args:
            ca_pem: The CA's certificate as PEM.
        """

    def upgrade(
        self,
        source: str,
        deadline: Deadline | float | None = None,
        *,
        allow_downgrade: bool = False,
    ) -> str:
        """Install the version that ``source`` offers into the other slot; the next boot runs it.

        A version that is there already is not an error.

        Args:
            source: ``https://host/path/`` or ``oci://host/repository:tag``.
            allow_downgrade: Whether a version older than the running one is accepted.
            deadline: 120 s on a good host by default.

        Returns:
            The system's own message about the outcome.

        Raises:
            UpgradeRefusedError: The system refused or failed; the error has its own message.
        """

    def slots_written(self) -> list[str]:
        """Return the parts of the disk written since the machine started, in the order of the disk.

        A part is a slot, by its name; ``boot``, the boot loader and its entries; ``recovery``; or
        anything else that outlives a reset. The state is not listed. Call ``sync`` in the guest first.
        """

    def fill_state(self, keep: int) -> None:
        """Fill the file system of the state.

        Args:
            keep: Bytes to leave free.
        """

    def free_state(self) -> None:
        """Remove what :meth:`fill_state` filled it with."""

    def allow_from(self, version: str) -> None:
        """Set the policy that refuses upgrades to versions older than ``version``."""


class MultiArch(Upgradable, Protocol):
    """An OS that takes the update for its own architecture from a source for several.

    Such a source is an index in a registry, or a folder of an update server with a folder for each
    architecture.
    """

    @classmethod
    def arch_folder(cls, arch: str | None = None) -> str:
        """Return the name of an architecture's folder on an update server.

        Args:
            arch: The architecture; by default, return what stands for the system's own in the source of
                :meth:`upgrade`.
        """


class Rollbackable(BootMenu, SlotDamage, Protocol):
    """An OS that returns to the previous slot: by command, by the boot menu, or by itself."""

    def rollback(self) -> None:
        """Let the next boot, and those after it, run the other slot.

        Raises:
            RecoveryRefusedError: The other slot does not boot; the error has the system's message.
        """

    def fall_back(self, deadline: Deadline | float | None = None) -> None:
        """Reboot into a version that fails, and wait until the system has given it up by itself.

        The machine then runs the previous version, or recovery, and is logged in.

        Args:
            deadline: 400 s on a good host by default.
        """


class Recoverable(Versioned, SlotLister, BootMenu, SlotDamage, Protocol):
    """An OS with a recovery system."""

    def boot_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Reboot into recovery by command, and log in there on the console.

        Args:
            deadline: 180 s on a good host by default.
        """

    def wait_recovery(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the machine, which is restarting, is in recovery, and log in there.

        Args:
            deadline: 180 s on a good host by default.
        """

    def repair(self, slot: str) -> None:
        """Write the version that was installed first into a slot, from recovery.

        Raises:
            RecoveryRefusedError: The system refused or failed; the error has its own message.
        """

    def damage_state(self) -> None:
        """Overwrite the head of the state's file system, so that it cannot be mounted again."""


class Resettable(Slotted, Protocol):
    """An OS that resets to its state after installation."""

    def reset(self) -> None:
        """Reset, from the system or from recovery, and log in on the console.

        The state is lost and the system has a new identity, but keeps its hostname and its account.
        It then runs the slot that was last good.

        Raises:
            RecoveryRefusedError: The system refused or failed; the error has its own message.
        """


class Clustered(Versioned, Protocol):
    """An OS whose machines form clusters, by a command of its own that a provider runs."""

    cluster_command: ClassVar[str]
    """The command that makes a machine a member; the provider says what it takes and prints."""
    cluster_credential: ClassVar[str]
    """The name of the systemd credential by which a system joins at its first boot."""


ABILITIES: Final[Mapping[tuple[str, ...], type]] = {
    ("verity",): Verified,
    ("install",): Installable,
    ("install-unattended",): UnattendedInstallable,
    ("install-unattended", "seed"): SeedInstallable,
    ("install-unattended", "credentials"): CredentialInstallable,
    ("install-unattended", "pairing"): Pairable,
    ("upgrade",): Upgradable,
    ("upgrade", "multi-arch"): MultiArch,
    ("rollback",): Rollbackable,
    ("recovery",): Recoverable,
    ("reset",): Resettable,
    ("cluster",): Clustered,
}
"""The protocol that a profile has to satisfy if its image declares all capabilities of the key."""


def abilities_of(capabilities: Collection[str]) -> list[type]:
    """Return the protocols that the profile of an image with these capabilities has to satisfy."""
    return [ability for key, ability in ABILITIES.items() if set(key) <= set(capabilities)]


def words_of(ability: type) -> frozenset[str]:
    """Return the words that a protocol adds to those of every OS."""
    return get_protocol_members(ability) - get_protocol_members(System)


def capabilities_with(word: str) -> list[str]:
    """Return the capabilities that bring a word, such as ``["recovery", "upgrade"]``."""
    return sorted(
        " with ".join(key) for key, ability in ABILITIES.items() if word in words_of(ability)
    )


def lacking(profile: type, capabilities: Collection[str]) -> list[str]:
    """Return the words, sorted, that the capabilities require and that the profile does not define.

    A table such as ``update_files`` counts as undefined while it is empty. The stub that a profile
    inherits from a protocol does not count as a definition.
    """
    required = {word for ability in abilities_of(capabilities) for word in words_of(ability)}
    return sorted(word for word in required if not _defines(profile, word))


def _defines(profile: type, word: str) -> bool:
    for base in profile.__mro__:
        if word in vars(base) and not is_protocol(base):
            value = vars(base)[word]
            return not (isinstance(value, Sized) and len(value) == 0)
    return False
