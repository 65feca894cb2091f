"""The lab: one object that boots, forks and builds machines; see :class:`~harness.lab.lab.Lab`."""

from harness.lab.lab import EVIDENCE, Lab, Service

__all__ = ["EVIDENCE", "Lab", "Service"]
