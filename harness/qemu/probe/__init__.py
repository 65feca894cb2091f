"""The guest code of the accelerator probe, and running it.

Opening ``/dev/kvm``, or booting firmware under it, proves nothing: there are hosts whose KVM has no
hardware under it, interprets 64-bit kernel code instruction by instruction, and runs the 16-bit and
32-bit code of firmware at a bearable pace. So the probe runs a small guest of its own that does what
a kernel does, 64-bit and paged, and compares accelerators by it.

``x86_64.S`` and ``aarch64.S`` are the source and ``*.bin`` what comes of it, committed so that no
host needs an assembler. ``python -m harness.qemu.probe`` assembles them again.

Seen running, when this was written: both under TCG, 256 rounds in 0.25 s; the code of x86_64 under a
KVM without hardware, 0.3 s and more for one round. Neither had yet met a KVM with hardware.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROUNDS: Final = 256
"""How many rounds of work the guest code does, one byte of progress each."""

_HERE: Final = Path(__file__).resolve().parent
_ROM_SIZE: Final = 0x10000
# At the reset vector, F000:FFF0: a far jump to F000:0000, the start of the code (Intel SDM volume
# 3A, 10.1.4 "First Instruction Executed").
_RESET: Final = bytes.fromhex("ea000000f0")


def binary(arch: str) -> Path:
    """Return the file that holds the assembled code of ``arch``."""
    return _HERE / f"{arch}.bin"


def source(arch: str) -> Path:
    """Return the assembler source of ``arch``."""
    return _HERE / f"{arch}.S"


def image(arch: str) -> bytes:
    """Return what QEMU is given: a ROM of 64 KiB for x86_64, a raw kernel image for aarch64."""
    code = binary(arch).read_bytes()
    if arch != "x86_64":
        return code
    rom = bytearray(_ROM_SIZE)
    rom[: len(code)] = code
    rom[0xFFF0 : 0xFFF0 + len(_RESET)] = _RESET
    return bytes(rom)
