"""Assemble the probe's guest code: ``python -m harness.qemu.probe`` in a checkout.

It needs GNU ``as`` and ``objcopy`` for each arch: the packages ``binutils``, and
``binutils-aarch64-linux-gnu`` or ``binutils-x86-64-linux-gnu`` for the arch that the host is not.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.qemu import probe
from harness.spec import ARCHES


def assembler(arch: str) -> str | None:
    """Return the prefix of the tools that assemble for ``arch``, ``None`` if there are none."""
    prefixes = [f"{arch}-linux-gnu-"] + ([""] if platform.machine() == arch else [])
    for prefix in prefixes:
        if shutil.which(f"{prefix}as") and shutil.which(f"{prefix}objcopy"):
            return prefix
    return None


def assemble(arch: str, prefix: str) -> bytes:
    """Return the code of ``arch``, assembled anew.

    Raises:
        subprocess.CalledProcessError: if the source has a fault; the assembler names it on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled, flat = Path(folder, "o"), Path(folder, "bin")
        subprocess.run([f"{prefix}as", probe.source(arch), "-o", compiled], check=True)
        subprocess.run(
            [f"{prefix}objcopy", "-O", "binary", "-j", ".text", compiled, flat], check=True
        )
        return flat.read_bytes()


def main() -> int:
    """Write the code of every arch that can be assembled here; return the exit status."""
    missing = False
    for arch in ARCHES:
        prefix = assembler(arch)
        if prefix is None:
            print(f"{arch}: no assembler (package binutils-{arch.replace('_', '-')}-linux-gnu)")
            missing = True
            continue
        probe.binary(arch).write_bytes(assemble(arch, prefix))
        print(f"{arch}: {probe.binary(arch).stat().st_size} bytes")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
