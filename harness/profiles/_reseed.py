"""Reseeds Linux' random pool in a fork, where no device tells the kernel that it runs in one.

What is written to ``/dev/urandom`` is mixed into the kernel's input pool. Its generator takes a new key
from there within a minute, or at once by the ioctl ``RNDRESEEDCRNG`` (Linux 4.17, random(4), and
``random_ioctl`` in ``drivers/char/random.c``; docs/snapshotting/random-for-clones.md of Firecracker).
``RNDADDENTROPY``, by which a system loads its seed at boot, does not have that effect later.

No program that guests are sure to have calls that ioctl, and they may have no interpreter. So the
command brings a program of its own: the shell writes its 140 bytes to a file in memory and runs it.
"""

from __future__ import annotations

import struct
from typing import Final

from harness import arch as arches

_HEADERS: Final = 64 + 56 - 8
_BASE: Final = 0x10000
"""The address of the program: above ``vm.mmap_min_addr``, and a multiple of each size of a page."""

_ZEROS: Final = r"\0" * 8
"""Zeros are most of the program."""


def program(arch: str) -> bytes:
    """Return the program for Linux: an ELF file.

    It calls the ioctl ``RNDRESEEDCRNG`` on its standard input, and exits with the error number, or 0.
    """
    row = arches.of(arch)
    (machine,) = row.marks.elf
    size = _HEADERS + len(row.reseed_code)
    # elf(5): a 64-bit little-endian executable for System V, whose one segment is the whole file. The
    # header of the segment begins in the last 8 bytes of the file's header: their number of segments, 1,
    # is its type, and their number of sections, 5, which Linux does not look at, is its flags.
    return (
        b"\x7fELF\2\1\1".ljust(16, b"\0")
        + struct.pack("<HHIQQQIHH", 2, machine, 1, _BASE + _HEADERS, 56, 0, 0, 64, 56)
        + struct.pack("<HHHHQQQQQQ", 1, 0, 5, 0, 0, _BASE, 0, size, size, 0)
        + row.reseed_code
    )


def command(arch: str, seed: str) -> str:
    """Return the command for root's POSIX shell; empty where a device makes it needless.

    :meth:`harness.machine.system.System.reseed` defines it.
    """
    if not arches.of(arch).reseed_code:
        return ""
    # The shell's own printf decodes the program: under emulation, a process costs milliseconds.
    return (
        f"echo {seed} >/dev/urandom;z='{_ZEROS}';for i in /run /dev/shm /tmp;do i=$i/.harness-reseed;"
        f'printf "{_escaped(program(arch))}" >$i&&chmod 700 $i&&$i </dev/urandom&&break;false;done'
    )


def _escaped(data: bytes) -> str:
    r"""Return bytes as a format of printf(1), for a shell in which ``$z`` is eight zeros.

    Digits are escaped, too: one would belong to a ``\0`` before it.
    """
    text = "".join(
        chr(byte) if chr(byte).isascii() and chr(byte).isalpha() else f"\\{byte:o}" for byte in data
    )
    return text.replace(_ZEROS, "$z")
