"""Everything that Harness knows of this host: capacity, accelerator, speed and admission.

:mod:`~harness.host.capacity` reads the CPUs and the memory that this process may use,
:mod:`~harness.host.accel` chooses KVM or TCG, :mod:`~harness.host.speed` measures how slow the host
is, and :mod:`~harness.host.admission` shares it among all machines.
"""

from harness.host.accel import Accel, cpu_model
from harness.host.admission import (
    Admission,
    Grant,
    Limits,
    Need,
    footprint,
    fork_footprint,
    workers,
)
from harness.host.capacity import Capacity

__all__ = [
    "Accel",
    "Admission",
    "Capacity",
    "Grant",
    "Limits",
    "Need",
    "cpu_model",
    "footprint",
    "fork_footprint",
    "workers",
]
