"""Assemble the probe's guest code: ``python -m harness.host.probe`` in a checkout.

It needs GNU ``as`` and ``objcopy`` for each architecture: the package ``binutils`` for the host's own,
and ``binutils-aarch64-linux-gnu`` or ``binutils-x86-64-linux-gnu`` for the other one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import arch as arches
from harness.host import probe


def assembler(arch: str) -> str | None:
    """Return the prefix of the tools that assemble for ``arch``; ``None`` if there are none."""
    prefixes = [f"{arch}-linux-gnu-"] + ([""] if arches.host() == arch else [])
    for prefix in prefixes:
        if shutil.which(f"{prefix}as") and shutil.which(f"{prefix}objcopy"):
            return prefix
    return None


def assemble(arch: str, prefix: str) -> bytes:
    """Return the freshly assembled code of ``arch``.

    Raises:
        subprocess.CalledProcessError: The source has an error; the assembler names it on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled, flat = Path(folder, "o"), Path(folder, "bin")
        subprocess.run([f"{prefix}as", probe.source(arch), "-o", compiled], check=True)
        subprocess.run(
            [f"{prefix}objcopy", "-O", "binary", "-j", ".text", compiled, flat], check=True
        )
        return flat.read_bytes()


def main() -> int:
    """Write the code of every architecture that has an assembler here; return the exit status."""
    missing = False
    for arch in arches.ARCHES:
        prefix = assembler(arch)
        if prefix is None:
            print(f"{arch}: no assembler (package {arches.of(arch).probe.assembler})")
            missing = True
            continue
        probe.binary(arch).write_bytes(assemble(arch, prefix))
        print(f"{arch}: {probe.binary(arch).stat().st_size} bytes")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
