"""The guest code of the accelerator probe.

Neither opening ``/dev/kvm`` nor booting firmware under it proves that KVM works: on some hosts KVM
has no hardware under it, interprets 64-bit kernel code instruction by instruction, and still runs the
16-bit and 32-bit code of firmware at a bearable speed. The probe therefore runs its own small guest,
which does the work of a kernel, 64-bit and paged, and compares the accelerators by it.

``x86_64.S`` and ``aarch64.S`` are the sources. The assembled ``*.bin`` are committed, so that no host
needs an assembler; ``python -m harness.host.probe`` assembles them again.

Measured when this was written: both under TCG, 256 rounds in 0.25 s; the x86-64 code under a KVM
without hardware, 0.3 s or more for one round. Neither had run under a KVM with hardware yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from harness import arch as arches

ROUNDS: Final = 256
"""Rounds of work that the guest code does; it sends one byte of progress for each."""

_HERE: Final = Path(__file__).resolve().parent
_ROM_SIZE: Final = 0x10000
# At the reset vector, F000:FFF0, a far jump to F000:0000, where the code starts (Intel SDM volume 3A,
# 10.1.4 "First Instruction Executed").
_RESET: Final = bytes.fromhex("ea000000f0")


def binary(arch: str) -> Path:
    """Return the file with the assembled code of ``arch``."""
    return _HERE / f"{arch}.bin"


def source(arch: str) -> Path:
    """Return the assembler source of ``arch``."""
    return _HERE / f"{arch}.S"


def image(arch: str) -> bytes:
    """Return the image for QEMU: a ROM of 64 KiB, or a raw kernel image."""
    code = binary(arch).read_bytes()
    if not arches.of(arch).probe.rom:
        return code
    rom = bytearray(_ROM_SIZE)
    rom[: len(code)] = code
    rom[0xFFF0 : 0xFFF0 + len(_RESET)] = _RESET
    return bytes(rom)
