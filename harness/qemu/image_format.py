"""What a disk's file is, by its first bytes.

QEMU takes the declared format as it is: a qcow2 or a compressed file that is declared ``raw`` becomes a
disk without a partition table, and the guest is blamed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import UsageError


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format that is not a raw disk.

    Attributes:
        name: Its name, for messages.
        magic: The bytes that it begins with.
        offset: Where these bytes are.
        packed: Whether it is compressed or an archive, of any data and not only of disks.
        hint: What to do about it; ``{file}`` is the file.
    """

    name: str
    magic: bytes
    offset: int = 0
    packed: bool = False
    hint: str = "convert it: qemu-img convert -O qcow2 {file} NEW.qcow2, and declare qcow2"


def _packed(name: str, magic: bytes, program: str, offset: int = 0) -> _Kind:
    hint = f"unpack it: {program} {{file}}; the build script of an image can do that"
    return _Kind(name, magic, offset, packed=True, hint=hint)


QCOW2: Final = "a qcow2 image"

# Of QEMU: docs/interop/qcow2.rst, block/vmdk.c, block/vdi.c, block/vhdx.h, block/vpc.c, docs/interop/
# parallels.txt, block/qed.h. Of the compressors: RFC 1952; xz-file-format.txt 2.1.1.1; RFC 8878;
# lz4_Frame_format.md; bzip2's own format. Of archives: APPNOTE.TXT 4.3.7; POSIX pax.
_KINDS: Final = (
    _Kind(QCOW2, b"QFI\xfb\0\0\0\2", hint="declare the format qcow2"),
    _Kind(QCOW2, b"QFI\xfb\0\0\0\3", hint="declare the format qcow2"),
    _Kind("an image of the first version of qcow", b"QFI\xfb\0\0\0\1"),
    _Kind("a VMDK image", b"KDMV"),
    _Kind("a VMDK image", b"COWD"),
    _Kind("a VMDK descriptor", b"# Disk DescriptorFile"),
    _Kind("a VDI image", b"\x7f\x10\xda\xbe", offset=64),
    _Kind("a VHDX image", b"vhdxfile"),
    _Kind("a VHD image", b"conectix"),
    _Kind("a Parallels image", b"WithoutFreeSpace"),
    _Kind("a Parallels image", b"WithouFreSpacExt"),
    _Kind("a QED image", b"QED\0"),
    _Kind("an Android sparse image", b"\x3a\xff\x26\xed", hint="convert it: simg2img {file} NEW"),
    _packed("compressed by gzip", b"\x1f\x8b\x08", "gunzip"),
    _packed("compressed by xz", b"\xfd7zXZ\0", "unxz"),
    _packed("compressed by zstd", b"\x28\xb5\x2f\xfd", "unzstd"),
    _packed("compressed by lz4", b"\x04\x22\x4d\x18", "unlz4"),
    _packed("compressed by bzip2", b"1AY&SY", "bunzip2", 4),
    _packed("a zip archive", b"PK\3\4", "unzip"),
    _packed("a 7-Zip archive", b"7z\xbc\xaf\x27\x1c", "7z x"),
    _packed("a tar archive", b"ustar", "tar -xf", 257),
)
_READ: Final = 512


def check(path: Path, declared: str, what: str, *, boots: bool, readonly: bool = False) -> None:
    """Refuse a file whose first bytes are not of the declared format.

    A raw disk that is not booted from may hold an archive or compressed data, which the guest reads from
    it. So such a file is refused there only if the guest may write to it and it does not end with a
    sector, as a disk does.

    Args:
        path: The file.
        declared: ``raw`` or ``qcow2``.
        what: The disk's name in the message: ``disk live``.
        boots: Whether a machine boots from it.
        readonly: Whether guests can only read it.

    Raises:
        UsageError: It is of another format; names the file and the format.
        OSError: The file cannot be read.
    """
    kind = _kind(path)
    if declared == "qcow2":
        if kind is None or kind.name != QCOW2:
            actual = "a raw disk, or damaged" if kind is None else kind.name
            raise UsageError(
                f"{what}: {path} is declared as qcow2, and is {actual}",
                hint="declare the format raw, if it is a raw disk"
                if kind is None
                else kind.hint.format(file=path),
            )
    elif kind is not None:
        data = readonly or path.stat().st_size % 512 == 0
        if kind.packed and data and not boots:
            return
        raise UsageError(
            f"{what}: {path} is declared as raw, and is {kind.name}",
            hint=kind.hint.format(file=path),
        )


def guess(path: Path) -> str:
    """Return the format of a file without a declared one: ``qcow2`` or ``raw``.

    Raises:
        OSError: The file cannot be read.
    """
    kind = _kind(path)
    return "qcow2" if kind is not None and kind.name == QCOW2 else "raw"


def _kind(path: Path) -> _Kind | None:
    with path.open("rb") as file:
        head = file.read(_READ)
    for kind in _KINDS:
        if head[kind.offset :].startswith(kind.magic):
            return kind
    return None
