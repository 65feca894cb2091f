"""Admission: the CPUs and the memory of a host, shared by all workers and runs on it.

A machine is started with a :class:`Grant`. Who asks for more than is free waits in line, first come
first served, and is told why. The memory granted never exceeds what the cgroup lets the host carry.
What is granted and what is asked for lies open in a folder (:mod:`harness.admission.board`), and
ends with its process, ``kill -9`` included.
"""

from harness.admission.admission import Admission, Grant, Need
from harness.admission.board import Entry, Status
from harness.admission.size import CPU_FACTOR, Limits, footprint, fork_footprint, pool, workers

__all__ = [
    "CPU_FACTOR",
    "Admission",
    "Entry",
    "Grant",
    "Limits",
    "Need",
    "Status",
    "footprint",
    "fork_footprint",
    "pool",
    "workers",
]
