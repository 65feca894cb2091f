"""What a disk's file is, by its first bytes: files of the real programs where the host has them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.qemu import disk, image_format
from harness.spec import MIB, Disk
from tests.programs import need

RAW = b"\xeb\x3c\x90" + b"boot code" + bytes(1000) + b"data" * 1000


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("disk.raw")
        entry.size = len(RAW)
        archive.addfile(entry, io.BytesIO(RAW))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("disk.raw", RAW)
    return buffer.getvalue()


def piped(*command: str) -> bytes:
    need(command[0])
    return subprocess.run(command, input=RAW, capture_output=True, check=True).stdout


PACKED: dict[str, Callable[[], bytes]] = {
    "compressed by gzip": lambda: gzip.compress(RAW),
    "compressed by xz": lambda: lzma.compress(RAW),
    "compressed by bzip2": lambda: bz2.compress(RAW),
    "compressed by zstd": lambda: piped("zstd", "-c"),
    "a zip archive": zipped,
    "a tar archive": tar,
}
IMAGES = {
    "qcow2": "a qcow2 image",
    "vmdk": "a VMDK image",
    "vdi": "a VDI image",
    "vhdx": "a VHDX image",
    "vpc": "a VHD image",
    "qed": "a QED image",
    "parallels": "a Parallels image",
}


def image(path: Path, kind: str, *options: str) -> Path:
    need("qemu-img")
    command = ["qemu-img", "create", "-q", "-f", kind, *options, str(path), "8M"]
    subprocess.run(command, check=True)
    return path


def test_a_raw_disk_is_raw(tmp_path: Path) -> None:
    for content in (RAW, b"", bytes(512), b"\0" * 600):
        path = tmp_path / "disk"
        path.write_bytes(content)
        image_format.check(path, "raw", "disk d", boots=True)
        assert image_format.guess(path) == "raw"


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_disk_is_refused_where_a_machine_boots_from_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(PACKED[kind]())
    with pytest.raises(UsageError, match=rf"disk live: {path} is declared as raw, and is {kind}"):
        disk.create(Disk("live", base=path, boot_index=0, size=MIB), tmp_path)
    with pytest.raises(UsageError, match=f"{path} is declared as qcow2, and is {kind}"):
        disk.create(Disk("data", base=path, format="qcow2", readonly=True), tmp_path)
    # A guest may be handed an archive as the content of a disk.
    assert disk.create(Disk("data", base=path, readonly=True), tmp_path).path == path


def test_a_compressed_file_that_a_guest_would_write_to_is_refused(tmp_path: Path) -> None:
    need("qemu-img")
    path = tmp_path / "data.img"
    path.write_bytes(gzip.compress(RAW) + b"x")
    with pytest.raises(UsageError, match="compressed by gzip"):
        disk.create(Disk("data", base=path), tmp_path)
    # A guest has written a tar or the like onto a whole disk, which ends with a sector.
    path.write_bytes(gzip.compress(RAW).ljust(MIB, b"\0"))
    assert disk.create(Disk("data", base=path), tmp_path).format == "qcow2"


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_of_another_format_is_refused_as_raw(tmp_path: Path, kind: str) -> None:
    path = image(tmp_path / "disk.img", kind)
    with pytest.raises(
        UsageError, match=f"disk d: {path} is declared as raw, and is {IMAGES[kind]}"
    ):
        disk.create(Disk("d", base=path, readonly=True), tmp_path)
    if kind == "qcow2":
        disk.create(Disk("d", base=path, format="qcow2"), tmp_path)
        assert image_format.guess(path) == "qcow2"
    else:
        with pytest.raises(UsageError, match=f"declared as qcow2, and is {IMAGES[kind]}") as caught:
            disk.create(Disk("d", base=path, format="qcow2"), tmp_path)
        assert f"qemu-img convert -O qcow2 {path}" in caught.value.hint


def test_a_raw_disk_is_refused_as_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(RAW)
    with pytest.raises(UsageError, match=r"declared as qcow2, and is a raw disk") as caught:
        disk.create(Disk("d", base=path, format="qcow2"), tmp_path)
    assert "declare the format raw" in caught.value.hint


def test_the_first_version_of_qcow_is_not_qcow2(tmp_path: Path) -> None:
    path = image(tmp_path / "disk", "qcow")
    with pytest.raises(UsageError, match="first version of qcow"):
        disk.create(Disk("d", base=path, format="qcow2"), tmp_path)
