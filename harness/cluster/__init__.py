"""Clusters: machines that serve clients together, and what they promise those clients.

- :mod:`~harness.cluster.cluster`: the machines of one, and the words that form, break and upgrade it.
- :mod:`~harness.cluster.provider`: what Harness has to know of one kind of cluster;
  :mod:`~harness.cluster.providers` has those that it knows, such as :mod:`~harness.cluster.etcd`.
- :mod:`~harness.cluster.clients`: concurrent clients that write and read while a test breaks things.
- :mod:`~harness.cluster.history`: what they asked, what was answered, and when; the check afterwards.
- :mod:`~harness.cluster.checks`: lost writes, stale reads and other faults, with their proof; by
  :mod:`~harness.cluster.linearizability` and :mod:`~harness.cluster.shrink`, and drawn by
  :mod:`~harness.cluster.drawing`.
"""

from harness.cluster.checks import Fault, Findings, Violation, examine
from harness.cluster.clients import Clients
from harness.cluster.cluster import Cluster
from harness.cluster.history import History
from harness.cluster.linearizability import decide
from harness.cluster.operation import Kind, Operation, Outcome
from harness.cluster.provider import Member, MemberStore, Provider, Store

__all__ = [
    "Clients",
    "Cluster",
    "Fault",
    "Findings",
    "History",
    "Kind",
    "Member",
    "MemberStore",
    "Operation",
    "Outcome",
    "Provider",
    "Store",
    "Violation",
    "decide",
    "examine",
]
