"""Crash points: the disk as it would be had power gone at any moment of a recording.

:mod:`~harness.crash.recording` is what a machine keeps of a disk's writes,
:mod:`~harness.crash.log` reads it, :mod:`~harness.crash.points` names the moments and what is lost at
them, :mod:`~harness.crash.rebuild` makes the disk, :mod:`~harness.crash.partitions` and
:mod:`~harness.crash.ext4` look into it.
``docs/power.md`` explains them to someone who writes a suite.
"""

from harness.crash.log import Entry, WriteLog
from harness.crash.points import Kind, Point, places, sample
from harness.crash.rebuild import Rebuilder
from harness.crash.recording import Recording

__all__ = ["Entry", "Kind", "Point", "Rebuilder", "Recording", "WriteLog", "places", "sample"]
