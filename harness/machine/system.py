"""The protocol by which a machine uses the operating system that runs in it.

Profiles (:mod:`harness.profiles`) implement it. The machine depends on this protocol alone, so it
knows no operating system and no profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from typing_extensions import TypeVar

from harness.deadline import Deadline
from harness.spec import Account

if TYPE_CHECKING:
    # The catalogue loads pydantic, which takes longer than the rest of the machine.
    from harness.catalog import Phase, Selection


@dataclass(frozen=True, slots=True)
class Identity:
    """The properties that tell one installed system from another.

    Attributes:
        machine_id: The content of ``machine-id(5)``, or the OS family's equivalent.
        hostname: The system's own name.
        host_key: The SSH server's public keys, sorted; empty if there are none.
    """

    machine_id: str
    hostname: str
    host_key: str = ""


class System(Protocol):
    """The words that every operating system has.

    The protocols of :mod:`harness.profiles.abilities` extend it by the words of one ability.
    """

    keeps_host_key: ClassVar[bool]
    """Whether the SSH host key survives a reboot."""
    state_folder: ClassVar[str]
    """A folder below which root can write; it survives reboots and upgrades, but no reset."""
    idle_seconds: ClassVar[float]
    """How long a booting guest may make no progress, in seconds of its own clock."""
    most_restarts: ClassVar[int]
    """How often a guest may restart while something waits for it to come up."""

    @property
    def selection(self) -> Selection:
        """The image that the machine was started from."""

    @property
    def account(self) -> Account:
        """The account that logs in, on the console and over SSH."""

    @account.setter
    def account(self, account: Account) -> None: ...

    def limit(self, phase: Phase, deadline: Deadline | float | None, default: float) -> Deadline:
        """Return the deadline of a phase.

        Args:
            phase: The phase.
            deadline: The caller's deadline; it takes precedence.
            default: Seconds on a good host, if neither the caller nor the image sets a deadline.
        """

    def login(self, deadline: Deadline | float | None = None) -> None:
        """Wait for the login prompt on the console and log in.

        Args:
            deadline: The image's own, or 120 s on a good host, by default.
        """

    def as_root(self, command: str) -> str:
        """Return the shell command that runs ``command`` as root for this account."""

    def request_reboot(self) -> str:
        """Return the shell command that reboots the guest cleanly."""

    def unit_state(self, unit: str) -> str:
        """Return the shell command that prints a service's state, such as ``active`` or ``failed``."""

    def reseed(self, seed: str) -> str:
        """Return the command for root's shell that reseeds the kernel's random pool at once.

        It runs first in a fork that has no VM generation device. Its status is 0 only if all random
        numbers that the kernel draws from then on depend on the seed.

        Args:
            seed: Random characters, which need no quotes.

        Returns:
            The command; empty for a system that cannot reseed.
        """

    def identity(self) -> Identity:
        """Return the identity of the running system."""

    def wait_running(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the system has started and no service has failed.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: A service has failed.
        """

    def wait_good(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the system has accepted the running version as good.

        A system that does not count boots accepts a version when the whole system has started.

        Args:
            deadline: 60 s on a good host by default.
        """


OS_co = TypeVar("OS_co", bound=System, default=System, covariant=True)
"""The operating system of a generic machine: ``Machine[Upgradable]`` is also a ``Machine``."""

OS = TypeVar("OS", bound=System, default=System)
"""The operating system of a machine that a function returns: the caller's annotation chooses it."""
