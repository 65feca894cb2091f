"""Crash points: the state of a disk if power had failed at a moment of a recording.

:mod:`~harness.machine.recording` records the writes of a machine's disk, and
:mod:`~harness.qemu.writelog` reads them. :mod:`~harness.powercut.points` names the moments and chooses
the writes that are lost at each. :mod:`~harness.powercut.rebuild` builds the disk.
:mod:`~harness.powercut.partitions` and :mod:`~harness.powercut.ext4` examine it.
``docs/explanation/power.md`` explains crash points to the author of a suite.
"""

from harness.machine.recording import Recording
from harness.powercut.points import Kind, Point, places, sample
from harness.powercut.rebuild import Rebuilder
from harness.qemu.writelog import LogEntry, WriteLog

__all__ = ["Kind", "LogEntry", "Point", "Rebuilder", "Recording", "WriteLog", "places", "sample"]
