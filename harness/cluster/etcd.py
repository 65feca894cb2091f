"""Provider ``etcd``: images that have a command which makes members of an etcd cluster.

The profile names the command (:class:`harness.profiles.Clustered`). Words that change the cluster run
it in the guest: ``prepare``, ``init``, ``token``, ``join`` and ``leave``; ``images/skiff/README.md``
has their options and answers.

Words that look at a member, and those of clients, ask the member's own gateway. It takes the calls of
etcd's API as JSON on the port for clients (etcd's documentation, "gRPC gateway"), so they need no shell
in the guest.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from harness.cluster import gateway
from harness.cluster.provider import Member
from harness.deadline import Deadline
from harness.errors import (
    HarnessError,
    JoinRefusedError,
    OperationRefusedError,
    OutcomeUnknownError,
    SshError,
    UsageError,
    WaitTimeoutError,
)
from harness.machine import Machine
from harness.network import Segment
from harness.result import Result

CLIENTS: Final = 2379
"""The port for clients."""

_ANSWER: Final = 0.5
_ELECTION: Final = 3.0
"""Seconds for a word that looks at a member, or one of a client: those that a good host needs, which are
scaled, and those of an election, which takes its time on any host. A paused member costs all of them."""

_CHANGE: Final = 120.0
_JOIN: Final = 240.0
"""Seconds on a good host for a word that changes the cluster; machines that join at once take turns."""

_VIRTUAL: Final = "virtual"
"""The name whose address on the segment is the virtual one: the same each time, that of no machine."""

_REFUSED: Final = 3
"""The exit status of a refused join; the last line is ``refused: KIND: text``."""

_REASON: Final = re.compile(r"refused: (?P<reason>[a-z][a-z-]*): (?P<text>.*)")

NEVER_APPLIED: Final = frozenset(
    {
        # server/etcdserver/api/v3rpc/interceptor.go, newUnaryInterceptor: before the call is handled.
        # The first one comes only to a request that asks for a leader, as our writes and reads do.
        "etcdserver: no leader",
        "etcdserver: not capable",
        "etcdserver: rpc not supported for learner",
        # server/etcdserver/api/v3rpc/key.go, checkPutRequest and checkRangeRequest: likewise.
        "etcdserver: key is not provided",
        # server/etcdserver/v3_server.go, processInternalRaftRequestOnce: before the write is proposed.
        "etcdserver: too many requests",
        "etcdserver: request is too large",
        # raft/raft.go, stepFollower, stepCandidate and stepLeader: before the entry is appended, or sent
        # to the leader.
        "raft proposal dropped",
    }
)
"""The errors of etcd that prove that a write was not applied, and never will be.

All others leave it open. ``request timed out``, with all its causes, and ``server stopped`` come after
the write was proposed. ``database space exceeded`` may come after it was applied: ``quotaApplierV3.Put``
in ``server/etcdserver/apply.go`` (3.4: ``etcdserver/apply.go``) stores the value, then fails.
"""

_JSON: Final = {"Content-Type": "application/json"}

# etcd answers "no leader" at once to a request with this metadata, and waits for one without it
# (``WithRequireLeader`` of its client). The gateway passes on headers with this prefix.
_WITH_LEADER: Final = {**_JSON, "Grpc-Metadata-hasleader": "true"}


class Etcd:
    """An etcd cluster, with a virtual address that keepalived moves; each word as its protocol says.

    Args:
        segment: The segment that the members meet on. It has a station: members get their addresses, and
            find each other's names, from it.
    """

    name: ClassVar[str] = "etcd"
    ports: ClassVar[tuple[int, ...]] = (CLIENTS,)

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    @property
    def virtual_address(self) -> IPv4Interface | None:
        """The virtual address: one of the segment's, the same each time."""
        addresses = self._segment.addresses
        return None if addresses is None else addresses.of(_VIRTUAL)

    # --- change the cluster ---------------------------------------------------------------------------

    def prepare(
        self, machine: Machine[Any], machines: Sequence[Machine[Any]], *, name: str | None = None
    ) -> None:
        """Give a machine its name, its address on the segment, and the virtual address to fail over.

        Raises:
            UsageError: The segment has no station, or a machine has the virtual address.
            CommandError: The image's command failed.
        """
        address = self._address_to_share()
        for other in machines:
            if self._segment.address(other) == address:
                raise UsageError(
                    f"machine {other.name} has the virtual address {address}", hint="rename it"
                )
        words = ("--name", name or machine.name, "--virtual-address", str(address))
        self._change(machine, "prepare", *words)

    def configuration(self, name: str, via: Machine[Any], *, token: str | None = None) -> str:
        """Return the name, the virtual address and the token, a line each.

        Raises:
            UsageError: The segment has no station.
        """
        address = self._address_to_share()
        token = token or self.token(via)
        lines = (f"name {name}", f"virtual-address {address}", f"join {token}")
        return "".join(f"{line}\n" for line in lines)

    def _address_to_share(self) -> IPv4Interface:
        address = self.virtual_address
        if address is None:
            raise UsageError(
                f"segment {self._segment.name} gives no addresses to the members",
                hint="make it with addresses=Addresses()",
            )
        return address

    def first(self, machine: Machine[Any]) -> None:
        """Start a cluster of one; return when it serves."""
        self._change(machine, "init")

    def token(self, via: Machine[Any], lifetime: float | None = None) -> str:
        """Return a new token, valid for whole seconds; for a day by default."""
        options = [] if lifetime is None else ["--lifetime", str(math.ceil(lifetime))]
        output = self._change(via, "token", *options).stdout.split()
        if not output:
            raise OutcomeUnknownError(f"machine {via.name} printed no token")
        return output[-1]

    def join(
        self, machine: Machine[Any], via: Machine[Any] | None = None, *, token: str | None = None
    ) -> None:
        """Add a member; return when it is a voter that has caught up and serves.

        Raises:
            UsageError: There is neither a member nor a token.
            JoinRefusedError: The cluster refused it: ``wrong-token``, ``expired-token``,
                ``duplicate-name``, ``clock`` or ``version``.
        """
        if token is None:
            if via is None:
                raise UsageError(
                    f"machine {machine.name} needs a member or a token to join",
                    hint="join(machine, via=member), or join(machine, token=provider.token(member))",
                )
            token = self.token(via)
        server = [] if via is None else ["--server", str(self._segment.address(via).ip)]
        self._change(machine, "join", "--token", token, *server, seconds=_JOIN)

    def leave(self, name: str, via: Machine[Any]) -> None:
        """Remove a member, dead or alive."""
        self._change(via, "leave", name)

    def _change(self, machine: Machine[Any], *words: str, seconds: float = _CHANGE) -> Result:
        """Run the image's command.

        Raises:
            JoinRefusedError: It refused.
            CommandError: It failed.
            WaitTimeoutError: It did not end.
        """
        command = shlex.join([machine.os.cluster_command, *words])
        result = machine.execute(machine.os.as_root(command), seconds)
        if result.status == _REFUSED:
            # On a serial console, errors are in the output.
            lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
            if lines and (reason := _REASON.fullmatch(lines[-1].strip())):
                raise JoinRefusedError(
                    reason["reason"],
                    f"the cluster refused {machine.name}: {reason['reason']}: {reason['text']}",
                    evidence=result.evidence,
                )
        return result.check()

    # --- look at it -----------------------------------------------------------------------------------

    def members(self, via: Machine[Any]) -> list[Member]:
        """Return the members in the member's own list, by name.

        Raises:
            OperationRefusedError, OutcomeUnknownError: It did not answer.
        """
        limit = _limit(via)
        return sorted(self._members(via, limit).values(), key=lambda member: member.name)

    def leader(self, via: Machine[Any]) -> str | None:
        """Return the name of the leader in the member's view; ``None`` if it sees none."""
        limit = _limit(via)
        try:
            status = self._ask(via, "/v3/maintenance/status", {}, limit)
            leader = self._members(via, limit).get(str(status.get("leader", "0")))
        except (OperationRefusedError, OutcomeUnknownError):
            return None
        return None if leader is None else leader.name

    def healthy(self, machine: Machine[Any]) -> bool:
        """Return whether a linearizable read succeeds, with a leader, and no alarm forbids writes."""
        limit = _limit(machine)
        try:
            self._ask(machine, "/v3/kv/range", {"key": _encode("health")}, limit)
            status = self._ask(machine, "/v3/maintenance/status", {}, limit)
        except (OperationRefusedError, OutcomeUnknownError):
            return False
        return status.get("leader", "0") != "0" and not status.get("errors")

    def holds(self, machine: Machine[Any]) -> bool:
        """Return whether an interface of the guest has the virtual address."""
        address = self.virtual_address
        if address is None or _ended(machine):
            return False
        command = f"ip -4 -o address show to {address.ip}/32"
        try:
            result = machine.execute(machine.os.as_root(command), _limit(machine))
        except (WaitTimeoutError, SshError):
            return False
        except HarnessError:
            # The power may have been cut meanwhile. Any other failure ends the test.
            if _ended(machine):
                return False
            raise
        return bool(result.check().stdout.strip())

    def _members(self, via: Machine[Any], limit: Deadline) -> dict[str, Member]:
        """Return the members by their ids."""
        answer = self._ask(via, "/v3/cluster/member/list", {}, limit)
        members = {}
        try:
            for member in answer["members"]:
                name = member.get("name") or self._named_by(member["peerURLs"][0])
                members[str(member["ID"])] = Member(
                    str(name), voter=not member.get("isLearner", False)
                )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise OutcomeUnknownError(
                f"machine {via.name}: a list of members that cannot be read",
                evidence=str(answer)[:1000],
            ) from error
        return members

    def _named_by(self, url: str) -> str:
        """Return the name of a member that has not started yet, and so not told its name."""
        host = urlsplit(url).hostname or url
        names = {str(self._segment.address(name).ip): name for name in self._segment.ports}
        return names.get(host, host)

    # --- use it ---------------------------------------------------------------------------------------

    def write(self, machine: Machine[Any], key: str, value: str) -> None:
        """Set a key.

        Raises:
            OperationRefusedError: It was not applied, and never will be: the request was not sent, or
                the answer is one of :data:`NEVER_APPLIED`.
            OutcomeUnknownError: There is any other answer, or none.
        """
        message = {"key": _encode(key), "value": _encode(value)}
        answer = self._ask(machine, "/v3/kv/put", message, _limit(machine))
        if not isinstance(answer.get("header"), dict):
            raise OutcomeUnknownError(
                f"machine {machine.name}: an answer without a header", evidence=str(answer)[:1000]
            )

    def read(self, machine: Machine[Any], key: str) -> str | None:
        """Return the value of a key by a linearizable read; invalid UTF-8 in it is replaced.

        Raises:
            OperationRefusedError, OutcomeUnknownError: There is no answer, or none with a value.
        """
        message = {"key": _encode(key)}
        answer = self._ask(machine, "/v3/kv/range", message, _limit(machine))
        try:
            pairs = answer.get("kvs", [])
            # JSON of protocol buffers leaves out what is empty.
            return _decode(pairs[0].get("value", "")) if pairs else None
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise OutcomeUnknownError(
                f"machine {machine.name}: a value that cannot be read", evidence=str(answer)[:1000]
            ) from error

    def _ask(
        self, machine: Machine[Any], path: str, message: Mapping[str, str], limit: Deadline
    ) -> dict[str, Any]:
        """Return the answer to one call of the API.

        Raises:
            OperationRefusedError: The call had no effect, and never will have one.
            OutcomeUnknownError: It may have one.
        """
        if _ended(machine):
            raise OperationRefusedError(f"machine {machine.name} has ended")
        answer = gateway.post(
            machine.port(CLIENTS),
            path,
            json.dumps(message).encode(),
            limit,
            headers=_WITH_LEADER if path.startswith("/v3/kv/") else _JSON,
            running=lambda: not _ended(machine),
        )
        try:
            content = json.loads(answer.body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise OutcomeUnknownError(
                f"machine {machine.name}: {path}: an answer that cannot be read",
                evidence=f"status {answer.status}: {answer.body[:1000]!r}",
            )
        if answer.status == 200:
            return content
        # Up to 3.5 the gateway has both; 3.6 has the second alone.
        text = str(content.get("error") or content.get("message"))[:1000]
        kind = OperationRefusedError if text in NEVER_APPLIED else OutcomeUnknownError
        raise kind(f"machine {machine.name}: {path}: {text}")


def _limit(machine: Machine[Any]) -> Deadline:
    """Return the deadline of a word that changes nothing in the cluster."""
    return machine.scale.after(_ANSWER + _ELECTION / machine.scale.factor)


def _ended(machine: Machine[Any]) -> bool:
    """Return whether a machine has ended; it may do so at any moment."""
    return not machine.running


def _encode(text: str) -> str:
    """Return a text as JSON of protocol buffers has bytes."""
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    """Return the text of bytes.

    Raises:
        ValueError: It is not base64.
    """
    try:
        return base64.b64decode(text, validate=True).decode(errors="replace")
    except binascii.Error as error:
        raise ValueError(str(error)) from error
