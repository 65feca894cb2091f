"""Networks between machines: the segment, what its links do to frames, its capture."""

from harness.network.addresses import Addresses
from harness.network.impairment import Impairment
from harness.network.segment import Counters, Fault, Link, Segment, SegmentState
from harness.network.vlan import Vlan

__all__ = [
    "Addresses",
    "Counters",
    "Fault",
    "Impairment",
    "Link",
    "Segment",
    "SegmentState",
    "Vlan",
]
