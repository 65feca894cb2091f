"""Admission: all workers and runs on a host share its CPUs and its memory.

A machine starts with a :class:`Grant`. A request for more than is free waits in line, first come
first served, and reports why it waits. The memory granted never exceeds the cgroup's limit for this
host. Grants and requests are visible to all processes in a folder
(:mod:`harness.host.admission.board`) and end with their process, ``kill -9`` included.
"""

from harness.host.admission.admission import Admission, Grant, Need
from harness.host.admission.board import Claim, Occupancy
from harness.host.admission.size import CPU_FACTOR, Limits, footprint, fork_footprint, pool, workers

__all__ = [
    "CPU_FACTOR",
    "Admission",
    "Claim",
    "Grant",
    "Limits",
    "Need",
    "Occupancy",
    "footprint",
    "fork_footprint",
    "pool",
    "workers",
]
