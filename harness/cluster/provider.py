"""What a kind of cluster has to offer: a protocol, which each provider implements.

A provider is to a cluster what a profile is to an operating system: all that Harness knows of etcd, k3s
and so on is in one. It acts on machines that run, and reports what the cluster itself says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any, ClassVar, Protocol

from harness.machine import Machine
from harness.network import Segment


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the cluster itself reports it.

    Attributes:
        name: The name of its machine.
        voter: Whether it counts for the majority; a learner or a worker does not.
    """

    name: str
    voter: bool = True


class Store(Protocol):
    """Registers that a client writes and reads: what a history records and checks.

    Both words are called by several threads at once. Each call ends within seconds in one of three
    ways, and the difference decides whether a correct cluster is accused:

    - It returns: the cluster has acknowledged it.
    - :class:`~harness.errors.OperationRefusedError`: it was not applied, and never will be. Only an
      answer that says so proves that; a connection that was refused does, too.
    - :class:`~harness.errors.OutcomeUnknownError`: everything else, above all a time limit, a connection
      that was lost after the request was sent, and an answer that cannot be read.

    Neither tries anything again by itself: a second try of a write may apply it twice, and later than a
    newer one. Clients are spread over the members, so that a member that lags or stands alone is asked.
    """

    def write(self, key: str, value: str) -> None:
        """Set a key, and return when the cluster has acknowledged it.

        Raises:
            OperationRefusedError: It was not applied, and never will be.
            OutcomeUnknownError: It may have been applied, or may be at any later time.
        """

    def read(self, key: str) -> str | None:
        """Return the value of a key, ``None`` without one, by the strongest read that there is.

        Raises:
            OperationRefusedError: The cluster refused to answer.
            OutcomeUnknownError: It did not answer.
        """


class Provider(Protocol):
    """One kind of cluster, on a segment.

    A word that takes a machine speaks with the member on that machine; the view of another may differ,
    and during a partition does. All words may be called by several threads at once, and end within
    seconds also when the member is paused, cut off or dead; those that change the cluster, within a few
    minutes. The latter return when the change holds, and raise an error of Harness if it does not.

    Args:
        segment: The segment that the members meet on.

    Attributes:
        name: The name by which an ``image.yaml`` asks for it.
        ports: The ports of a guest that the words connect to. Each machine forwards them, by its
            user-mode interface: ``Nic(forward=(22, *provider.ports))``.
    """

    name: ClassVar[str]
    ports: ClassVar[tuple[int, ...]]

    def __init__(self, segment: Segment) -> None: ...

    @property
    def virtual_address(self) -> IPv4Interface | None:
        """The address that one healthy member has at a time; ``None`` if this kind has none."""

    # --- change the cluster ---------------------------------------------------------------------------

    def prepare(
        self, machine: Machine[Any], machines: Sequence[Machine[Any]], *, name: str | None = None
    ) -> None:
        """Make a machine ready to become a member: names, certificates, the clock.

        It starts nothing, may be called again, and does not need the other machines to run.

        Args:
            machine: The machine.
            machines: All machines that may become members, itself among them.
            name: The name that it goes by; that of the machine by default.
        """

    def first(self, machine: Machine[Any]) -> None:
        """Start a cluster whose only member is on a machine; return when it serves."""

    def token(self, via: Machine[Any], lifetime: float | None = None) -> str:
        """Return a new token that lets a machine join.

        Args:
            via: The machine of a member.
            lifetime: Seconds for which it is valid; the cluster's own by default.
        """

    def join(
        self, machine: Machine[Any], via: Machine[Any] | None = None, *, token: str | None = None
    ) -> None:
        """Add a member; return when it is one, has caught up, and serves.

        Args:
            machine: The machine of the new member; prepared.
            via: The machine of a member; ``None`` lets the new member discover one on the segment.
            token: A token of :meth:`token`; a new one of ``via`` by default.

        Raises:
            UsageError: There is neither a member nor a token.
            JoinRefusedError: The cluster refused it. The cluster and the machine are as they were.
        """

    def configuration(self, name: str, via: Machine[Any], *, token: str | None = None) -> str:
        """Return the configuration with which a system joins by itself, at its first boot.

        It is handed over by the credential that the profile names (``cluster_credential``), or by the
        seed of an installation (:attr:`harness.profiles.Install.cluster`).

        Args:
            name: The name that it goes by.
            via: The machine of a member.
            token: A token of :meth:`token`; a new one of ``via`` by default.
        """

    def leave(self, name: str, via: Machine[Any]) -> None:
        """Remove a member, dead or alive; return when the others no longer count it.

        Args:
            name: The name of its machine.
            via: The machine of another member.
        """

    # --- look at it -----------------------------------------------------------------------------------

    def members(self, via: Machine[Any]) -> list[Member]:
        """Return the members as one of them sees them, by name; those that joined but are down, too.

        Raises:
            OperationRefusedError, OutcomeUnknownError: It did not answer.
        """

    def leader(self, via: Machine[Any]) -> str | None:
        """Return the name of the leader's machine as one member sees it; ``None`` if it sees none.

        It answers within seconds, also when the member does not: with ``None``.
        """

    def healthy(self, machine: Machine[Any]) -> bool:
        """Return whether the member on a machine now serves writes and reads, with a majority.

        It answers within seconds, also when the machine does not: with ``False``.
        """

    def holds(self, machine: Machine[Any]) -> bool:
        """Return whether the member on a machine now has the virtual address.

        It answers within seconds, also when the machine does not: with ``False``.
        """

    # --- use it ---------------------------------------------------------------------------------------

    def write(self, machine: Machine[Any], key: str, value: str) -> None:
        """Set a key through the member on a machine, as :meth:`Store.write` does.

        Raises:
            OperationRefusedError: It was not applied, and never will be.
            OutcomeUnknownError: It may have been applied, or may be at any later time.
        """

    def read(self, machine: Machine[Any], key: str) -> str | None:
        """Return the value of a key through the member on a machine, as :meth:`Store.read` does.

        Raises:
            OperationRefusedError: The cluster refused to answer.
            OutcomeUnknownError: It did not answer.
        """


@dataclass(frozen=True, slots=True)
class MemberStore:
    """The registers of a cluster, through one of its members.

    Attributes:
        provider: The kind of cluster.
        machine: Returns the machine of the member: another one after a power cut.
    """

    provider: Provider
    machine: Callable[[], Machine[Any]]

    def write(self, key: str, value: str) -> None:
        """Set a key: :meth:`Store.write`."""
        self.provider.write(self.machine(), key, value)

    def read(self, key: str) -> str | None:
        """Return the value of a key: :meth:`Store.read`."""
        return self.provider.read(self.machine(), key)
