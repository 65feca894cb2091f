"""One virtual machine: the words that scenarios use.

A machine owns its QEMU, console, monitor, SSH session and disks, and leaves evidence of each. It is
a context manager; what ends it (the guest's panic, QEMU's death) ends every pending wait at once,
whatever the wait is on.

:class:`Machine` is the end of a short chain of classes, each a module and a concept:
:mod:`~harness.machine.parts` is what it consists of, :mod:`~harness.machine.start` starts and stops
it, :mod:`~harness.machine.power` is what is done to it from outside, :mod:`~harness.machine.commands`
what its guest runs, :mod:`~harness.machine.machine` its disks and what is saved of it. Of these,
:mod:`~harness.machine.fate` knows what becomes of it, and :mod:`~harness.machine.disks` what QEMU
does with its disks.
"""

from harness.machine.commands import CommandResult, quote
from harness.machine.machine import Machine

__all__ = ["CommandResult", "Machine", "quote"]
