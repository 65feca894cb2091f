"""The architecture that a kernel or a disk is made for, by its content.

A guest of another architecture never comes up: QEMU refuses the kernel, or the firmware finds no
boot loader, and the image is blamed for it. So the headers are read before a machine starts. Unknown
content is accepted: a disk may have any.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from harness import arch as arches
from harness.errors import HostError, UsageError
from harness.qemu import disk, file_system
from harness.qemu.argv import escape
from harness.qemu.file_system import ESP, Read
from harness.spec import KIB, Disk, FirmwareKind, MachineSpec

_HEAD: Final = 4 * KIB
_MEMBERS: Final = 1000
"""Members of an archive that are looked at."""

_CHUNK: Final = 1024 * KIB
"""Bytes of a qcow2 image that are read at a time: each time a program runs for it."""


def check(spec: MachineSpec) -> None:
    """Refuse a machine whose kernel or boot disk is made for another architecture.

    Disks that the machine does not boot from may be of any: those without a boot index, where another
    disk has one.

    Raises:
        UsageError: Names the file, what it is made for, and by what that is known.
    """
    if spec.firmware.kernel is not None:
        path = spec.firmware.kernel
        check_kernel(path, spec.arch, f"machine {spec.name}: the kernel {path}")
    for each in _boot_disks(spec):
        assert each.base is not None
        what = f"machine {spec.name}: disk {each.name}, {each.base},"
        check_disk(each.base, each.format, spec.arch, what)


def _boot_disks(spec: MachineSpec) -> Iterator[Disk]:
    ordered = spec.firmware.kind is FirmwareKind.KERNEL or any(
        each.boot_index is not None for each in spec.disks
    )
    for each in spec.disks:
        if each.base is not None and (each.boot_index is not None or not ordered):
            yield each


def check_kernel(path: Path, arch: str, what: str) -> None:
    """Refuse a kernel, or another program that QEMU starts directly, of another architecture.

    Args:
        path: The file.
        arch: The architecture of the machine.
        what: The file's name in the message.

    Raises:
        UsageError: It is made for another one.
    """
    try:
        with path.open("rb") as file:
            marks = kernel_marks(_reader(file, path.stat().st_size))
    except OSError:
        return
    _refuse(arch, what, marks)


def check_disk(path: Path, image_format: str, arch: str, what: str) -> None:
    """Refuse a disk that is made for another architecture.

    Args:
        path: The file.
        image_format: ``raw`` or ``qcow2``.
        arch: The architecture of the machine.
        what: The disk's name in the message.

    Raises:
        UsageError: It is made for another one.
    """
    try:
        state = path.stat()
        marks = _marks_of_file(path, image_format, state.st_size, state.st_mtime_ns)
    except (OSError, HostError):
        return  # whoever uses the disk next says what is wrong with it
    _refuse(arch, what, marks)


def check_archive(path: Path, arch: str, what: str) -> None:
    """Refuse a tar whose kernels and EFI programs are all made for other architectures.

    ELF files do not count: a tool for another architecture may be among the files.

    Args:
        path: The file; one that is compressed, or no tar, is accepted.
        arch: The architecture of the guests that get the files.
        what: The file's name in the message.

    Raises:
        UsageError: They are made for another one.
    """
    marks: dict[str, str] = {}
    # Its members are read where they are: a header each, and the beginning of each file.
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(path, "r:") as archive:
        for member in itertools.islice(archive, _MEMBERS):
            if not member.isreg() or (content := archive.extractfile(member)) is None:
                continue
            for name, words in kernel_marks(_reader(content, member.size), elf=False).items():
                marks.setdefault(name, f"{member.name}: {words}")
    _refuse(arch, what, marks)


def _refuse(arch: str, what: str, marks: Mapping[str, str]) -> None:
    if not marks or arch in marks:
        return
    other = next(iter(marks))
    raise UsageError(
        f"{what} is made for {other}, not for {arch}",
        evidence="\n".join(marks.values()),
        hint=f"use a file for {arch} (in image.yaml: arches.{arch}), or choose --arch {other}",
    )


@functools.lru_cache(maxsize=256)
def _marks_of_file(path: Path, image_format: str, size: int, _mtime: int) -> Mapping[str, str]:
    if image_format == "qcow2":
        return disk_marks(_Qcow2(path))
    with path.open("rb") as file:
        return disk_marks(_reader(file, size))


def _reader(file: IO[bytes], end: int) -> Read:
    def read(start: int, size: int) -> bytes:
        # Offsets are the file's own words, and the system takes no more than 63 bits.
        if start >= end:
            return b""
        file.seek(start)
        return file.read(size)

    return read


def kernel_marks(read: Read, *, elf: bool = True) -> dict[str, str]:
    """Return the marks of architectures in a kernel, a sentence by architecture.

    Args:
        read: Reads the file.
        elf: Whether an ELF file is a kernel.
    """
    head = read(0, _HEAD)
    if head[:2] == b"\x1f\x8b":
        # QEMU unpacks it for aarch64 (load_image_gzipped_buffer in hw/core/loader.c).
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD)
        except zlib.error:
            return {}
    by_arch = {}
    for arch in arches.ARCHES:
        marks = arches.of(arch).marks
        magic, at = marks.kernel
        if (machine := _pe_machine(head, read)) in marks.pe:
            by_arch[arch] = f"it is an EFI program (PE) for machine {machine:#06x}"
        elif elf and (machine := _elf_machine(head)) in marks.elf:
            by_arch[arch] = f"it is an ELF file for machine {machine}"
        elif head[at:].startswith(magic):
            by_arch[arch] = f"it is a Linux kernel of {arch}"
    return by_arch


def _pe_machine(head: bytes, read: Read) -> int | None:
    """Return the machine of an EFI program (PE format, "Signature" and "COFF File Header")."""
    if head[:2] != b"MZ" or len(head) < 64:
        return None
    (at,) = struct.unpack_from("<I", head, 60)
    header = head[at : at + 6] if at + 6 <= len(head) else read(at, 6)
    if len(header) < 6 or header[:4] != b"PE\0\0":
        return None
    return int(struct.unpack_from("<H", header, 4)[0])


def _elf_machine(head: bytes) -> int | None:
    """Return the machine of an ELF file (``elf(5)``, ``e_machine``)."""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return None
    order = ">" if head[5] == 2 else "<"
    return int(struct.unpack_from(f"{order}H", head, 18)[0])


def disk_marks(read: Read) -> dict[str, str]:
    """Return the marks of architectures on a disk, a sentence by architecture.

    The boot loaders count. Types of partitions count where no boot loader is found: what starts decides,
    and some images have the same types for all architectures.
    """
    partitions = file_system.partitions(read)
    volumes = [each.start for each in partitions if each.type == ESP]
    loaders = set()
    for start in volumes if partitions else [0]:
        loaders |= file_system.names(read, start, "EFI", "BOOT")
    by_arch = {}
    for arch in arches.ARCHES:
        loader = arches.of(arch).marks.efi_loader
        if loader in loaders:
            by_arch[arch] = f"its EFI system partition has the boot loader EFI/BOOT/{loader}"
    if by_arch:
        return by_arch
    types = {each.type for each in partitions}
    for arch in arches.ARCHES:
        for name, kind in arches.of(arch).marks.partitions.items():
            if kind in types:
                by_arch.setdefault(arch, f"it has a partition of the type {name}")
    return by_arch


class _Qcow2:
    """Reads a qcow2 image, of any version and compression, with its backing files.

    Args:
        path: The image.

    Raises:
        OSError: The image cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks: dict[int, bytes] = {}
        with path.open("rb") as file:
            head = file.read(32)
        # docs/interop/qcow2.rst of QEMU, "size".
        self._size = struct.unpack_from(">Q", head, 24)[0] if len(head) == 32 else 0

    def __call__(self, start: int, size: int) -> bytes:
        """Return bytes of the disk; fewer at its end.

        Raises:
            HostError: ``qemu-img`` is missing or failed.
        """
        content = b""
        for number in range(start // _CHUNK, -(-(start + size) // _CHUNK)):
            if number not in self._chunks:
                self._chunks[number] = self._read(number * _CHUNK)
            content += self._chunks[number]
        offset = start % _CHUNK
        return content[offset : offset + size]

    def _read(self, start: int) -> bytes:
        size = min(_CHUNK, self._size - start)
        if size <= 0:
            return b""
        # The part of the image is a disk of its own. "qemu-img dd" counts from the beginning of the
        # disk in some versions, from "skip" in others.
        part = (
            f"driver=raw,offset={start},size={size},file.driver=qcow2,"
            f"file.file.driver=file,file.file.filename={escape(str(self._path))}"
        )
        with tempfile.TemporaryDirectory() as folder:
            chunk = Path(folder, "chunk")
            # -U: a machine may have the file open.
            disk.qemu_img("convert", "-U", "--image-opts", part, "-O", "raw", str(chunk))
            return chunk.read_bytes()
