"""Seeds: what a machine is told before it first boots.

A NoCloud seed is an ISO 9660 volume labelled ``cidata`` with the files ``user-data`` and
``meta-data`` (cloud-init's documentation, data source NoCloud). systemd credentials need no file:
they are part of the spec (:attr:`harness.spec.MachineSpec.credentials`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pycdlib

from harness.errors import UsageError
from harness.spec import Disk

LABEL = "cidata"


def write_nocloud(path: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write a NoCloud seed.

    Args:
        path: The ISO image to write.
        files: Contents by name; ``meta-data`` is added, empty, when absent.

    Returns:
        ``path``.

    Raises:
        UsageError: if a name holds a slash.
    """
    contents = {"meta-data": "", **files}
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for number, (name, content) in enumerate(sorted(contents.items())):
            if not name or "/" in name:
                raise UsageError(f"a seed holds files without folders, not {name!r}")
            data = content.encode() if isinstance(content, str) else content
            iso.add_fp(
                io.BytesIO(data),
                len(data),
                # The ISO 9660 name is a stand-in: Linux reads the Rock Ridge one.
                f"/FILE{number:04d}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        iso.write(str(path))
    finally:
        iso.close()
    return path


def seed_disk(path: Path, name: str = "seed") -> Disk:
    """Return the read-only disk that hands a seed to a machine."""
    return Disk(name, base=path, format="raw", readonly=True)
