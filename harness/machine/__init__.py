"""One virtual machine: the words that scenarios use.

:func:`launch` starts one from a spec and a :class:`Setup`, and returns a :class:`Machine` that runs. A
machine owns its QEMU, console, monitor, SSH session and disks, and leaves evidence of each. A failure in
its scope (the guest's panic, the death of its QEMU, a failure of another machine of the test) ends every
pending wait at once.

A machine is composed: :mod:`~harness.machine.parts` holds everything that was started, and each group of
words is a component over it: :mod:`~harness.machine.commands`, :mod:`~harness.machine.power`,
:mod:`~harness.machine.disks`, :mod:`~harness.machine.saving`. :mod:`~harness.machine.ending` decides
whether an end is a failure, :mod:`~harness.machine.watchdog` detects a guest that hangs, and
:mod:`~harness.machine.system` is the protocol by which a machine asks its operating system.
"""

from harness.machine.commands import quote
from harness.machine.machine import Machine, Setup
from harness.machine.start import launch
from harness.machine.system import System

__all__ = ["Machine", "Setup", "System", "launch", "quote"]
