"""What a kind of cluster has to offer: a protocol, which each provider implements.

A provider is to a cluster what a profile is to an operating system: all that Harness knows of etcd, k3s
and so on is in one. It acts on machines that run, and reports what the cluster itself says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.machine import Machine


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
    """Registers that clients write and read: what a history records and checks.

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


class Provider(Store, Protocol):
    """One kind of cluster.

    A word that takes a machine speaks with the member on that machine; the view of another may differ,
    and during a partition does. Words that change the cluster return when the change holds, and raise an
    error of Harness if it does not within their time.
    """

    def prepare(self, machine: Machine, machines: Sequence[Machine]) -> None:
        """Make a machine ready to become a member: names, certificates, the clock.

        It starts nothing, may be called again, and does not need the other machines to run.

        Args:
            machine: The machine.
            machines: All machines that may become members, itself among them.
        """

    def first(self, machine: Machine) -> None:
        """Start a cluster whose only member is on a machine; return when it serves."""

    def join(self, machine: Machine, via: Machine) -> None:
        """Add a member; return when it is one, has caught up, and serves.

        A member that is refused leaves the cluster as it was.

        Args:
            machine: The machine of the new member; prepared.
            via: The machine of a member.
        """

    def leave(self, name: str, via: Machine) -> None:
        """Remove a member, dead or alive; return when the others no longer count it.

        Args:
            name: The name of its machine.
            via: The machine of another member.
        """

    def members(self, via: Machine) -> list[Member]:
        """Return the members as one of them sees them, by name; those that joined but are down, too."""

    def leader(self, via: Machine) -> str | None:
        """Return the name of the leader's machine as one member sees it; ``None`` if it sees none."""

    def healthy(self, machine: Machine) -> bool:
        """Return whether the member on a machine now serves writes and reads, with a majority.

        It answers within seconds, also when the machine does not: with ``False``.
        """
