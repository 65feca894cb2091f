"""Writes NoCloud seeds: the configuration that a machine reads at its first boot.

A NoCloud seed is an ISO 9660 volume labelled ``cidata`` with the files ``user-data`` and ``meta-data``
(cloud-init's documentation, data source NoCloud). systemd credentials need no file: they are part of
the spec (:attr:`harness.spec.MachineSpec.credentials`).
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
        files: Contents by file name; an empty ``meta-data`` is added if there is none.

    Returns:
        ``path``.

    Raises:
        UsageError: A file name is empty or contains a slash.
    """
    contents = {"meta-data": "", **files}
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for number, (name, content) in enumerate(sorted(contents.items())):
            if not name or "/" in name:
                raise UsageError(
                    f"{name!r} is not a file name: a seed has no folders",
                    hint="name files such as user-data, meta-data, network-config",
                )
            data = content.encode() if isinstance(content, str) else content
            iso.add_fp(
                io.BytesIO(data),
                len(data),
                # A placeholder for the ISO 9660 name: Linux reads the Rock Ridge name.
                f"/FILE{number:04d}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        iso.write(str(path))
    finally:
        iso.close()
    return path


def seed_disk(path: Path, name: str = "seed") -> Disk:
    """Return a read-only disk that holds a seed.

    Args:
        path: The seed's ISO image.
        name: The disk's name.
    """
    return Disk(name, base=path, format="raw", readonly=True)
