"""What a kernel or a disk is made for: disks of the real programs, where the host has them."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import arch as arches
from harness.arch import ARCHES
from harness.errors import UsageError
from harness.qemu import target
from harness.qemu.file_system import Read, names, partitions
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec
from tests.programs import need

ROOT = {
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
}
VERITY = {
    "x86_64": "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    "aarch64": "df3300ce-d69f-4c92-978c-9bfb0f38d820",
}
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
LOADER = {"x86_64": "BOOTX64.EFI", "aarch64": "BOOTAA64.EFI"}
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}


def reader(content: bytes) -> Read:
    return lambda start, size: content[start : start + size]


# --- kernels ------------------------------------------------------------------------------------


def pe(machine: int, at: int = 0x80) -> bytes:
    head = bytearray(8192)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 60, at)
    head[at : at + 6] = struct.pack("<4sH", b"PE\0\0", machine)
    return bytes(head)


def elf(machine: int, *, big: bool = False) -> bytes:
    ident = b"\x7fELF\x02" + (b"\2" if big else b"\1") + bytes(10)
    return ident + struct.pack(">HH" if big else "<HH", 2, machine) + bytes(1000)


def placed(magic: bytes, at: int) -> bytes:
    return bytes(at) + magic + bytes(1000)


KERNELS: dict[str, tuple[bytes, set[str]]] = {
    "EFI program, x86-64": (pe(0x8664), {"x86_64"}),
    "EFI program, arm64": (pe(0xAA64), {"aarch64"}),
    "EFI program with a far header": (pe(0xAA64, 6000), {"aarch64"}),
    "EFI program, 32 bits": (pe(0x014C), {"x86_64"}),
    "EFI program, another machine": (pe(0x5064), set()),
    "ELF, x86-64": (elf(62), {"x86_64"}),
    "ELF, i386": (elf(3), {"x86_64"}),
    "ELF, arm64": (elf(183), {"aarch64"}),
    "ELF, another machine": (elf(243), set()),
    "ELF, the bytes in another order": (elf(183, big=True), {"aarch64"}),
    "bzImage without EFI": (placed(b"HdrS", 0x202), {"x86_64"}),
    "arm64 Image without EFI": (placed(b"ARMd", 56), {"aarch64"}),
    "arm64 Image, compressed": (gzip.compress(placed(b"ARMd", 56)), {"aarch64"}),
    "compressed, of something else": (gzip.compress(b"070701" * 1000), set()),
    "compressed, and damaged": (b"\x1f\x8b\x08" + b"\xff" * 100, set()),
    "MZ alone": (b"MZ", set()),
    "MZ and an offset past the end": (b"MZ" + b"\xff" * 100, set()),
    "ELF, cut": (elf(62)[:19], set()),
    "empty": (b"", set()),
    "text": (b"MAGIC ARMd HdrS\n" * 100, set()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_told_by_its_headers(name: str) -> None:
    content, expected = KERNELS[name]
    assert set(target.kernel_marks(reader(content))) == expected


def test_a_program_of_this_host_is_made_for_it() -> None:
    if arches.host() not in ARCHES:
        pytest.skip(f"Harness knows no guests of {arches.host()}")
    with Path(sys.executable).open("rb") as file:
        marks = target.kernel_marks(lambda start, size: os.pread(file.fileno(), size, start))
    assert set(marks) == {arches.host()}


@pytest.mark.parametrize("arch", ARCHES)
def test_a_kernel_of_another_arch_is_refused(tmp_path: Path, arch: str) -> None:
    files = {"x86_64": pe(0x8664), "aarch64": pe(0xAA64)}
    path = tmp_path / "vmlinuz"
    path.write_bytes(files[OTHER[arch]])
    spec = MachineSpec("m", arch, Firmware(FirmwareKind.KERNEL, path))
    message = f"machine m: the kernel {path} is made for {OTHER[arch]}, not for {arch}"
    with pytest.raises(UsageError, match=message) as caught:
        target.check(spec)
    assert "EFI program" in caught.value.evidence
    assert f"--arch {OTHER[arch]}" in caught.value.hint
    path.write_bytes(files[arch])
    target.check(spec)
    path.unlink()
    target.check(spec)  # QEMU names a file that is missing


def archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("./link")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        tar.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(f"./{name}.efi")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_the_files_of_an_update_server_are_told_by_their_programs(tmp_path: Path) -> None:
    path = archive(tmp_path / "tar", root=b"erofs", uki=pe(0xAA64, 6000), sums=b"")
    target.check_archive(path, "aarch64", "it")
    with pytest.raises(UsageError, match="it is made for aarch64, not for x86_64") as caught:
        target.check_archive(path, "x86_64", "it")
    assert caught.value.evidence == "./uki.efi: it is an EFI program (PE) for machine 0xaa64"
    mixed = archive(tmp_path / "mixed", one=pe(0xAA64), two=pe(0x8664))
    # A tool for another machine may be among the files.
    tool = archive(tmp_path / "tool", root=b"squashfs", tool=elf(62))
    others = [archive(tmp_path / "none", root=b"erofs", cut=pe(0xAA64)[:60]), mixed, tool]
    (tmp_path / "cut").write_bytes(path.read_bytes()[:2000])
    (tmp_path / "text").write_text("no tar")
    (tmp_path / "packed").write_bytes(gzip.compress(path.read_bytes()))
    for other in (*others, *(tmp_path / name for name in ("cut", "text", "packed", "missing"))):
        for arch in ARCHES:
            target.check_archive(other, arch, "it")


# --- disks --------------------------------------------------------------------------------------


def table(path: Path, *types: str, label: str = "gpt") -> Path:
    """Write a table of partitions of 4 MiB; an EFI system partition has 36 MiB."""
    need("sfdisk")
    with path.open("wb") as file:
        file.truncate(80 * MIB)
    sizes = (36 if each == ESP else 4 for each in types)
    lines = [f"size={size}MiB, type={each}" for size, each in zip(sizes, types, strict=True)]
    text = "\n".join((f"label: {label}", *lines, ""))
    subprocess.run(["sfdisk", "-q", str(path)], input=text, text=True, check=True)
    return path


def large_sectors(path: Path) -> Path:
    """Move the table of partitions to where it is on a disk with sectors of 4 KiB."""
    content = path.read_bytes()
    moved = bytearray(len(content))
    moved[4096 : 4096 + 512] = content[512:1024]
    moved[2 * 4096 : 2 * 4096 + 128 * 128] = content[1024 : 1024 + 128 * 128]
    path.write_bytes(moved)
    return path


def esp(path: Path, start: int, *loaders: str, bits: int = 32, files: int = 0) -> Path:
    """Make a FAT file system at an offset, with boot loaders behind a number of other files."""
    need("mkfs.fat")
    need("mcopy")
    command = ["mkfs.fat", "-F", str(bits), "--offset", str(start // 512), str(path)]
    # mkfs.fat takes a number of blocks of 1 KiB.
    size = {12: 2, 16: 20, 32: 36}[bits] * 1024
    subprocess.run([*command, str(size)], check=True, stdout=subprocess.DEVNULL)
    volume = f"{path}@@{start}"
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(
        ["mmd", "-i", volume, "::/loader", "::/EFI", "::/EFI/Linux", "::/EFI/BOOT"],
        check=True,
        env=environment,
    )
    program = path.with_name("program")
    program.write_bytes(b"program")
    sources = []
    for name in (*(f"a long name of file {number}" for number in range(files)), *loaders):
        source = path.parent / name
        source.write_bytes(b"x")
        sources.append(str(source))
    if sources:
        command = ["mcopy", "-i", volume, *sources, "::/EFI/BOOT/"]
        subprocess.run(command, check=True, env=environment)
    return path


def marks(path: Path) -> dict[str, str]:
    return target.disk_marks(reader(path.read_bytes()))


@pytest.mark.parametrize("arch", ARCHES)
def test_a_disk_is_told_by_the_types_of_its_partitions(tmp_path: Path, arch: str) -> None:
    path = table(tmp_path / "disk", LINUX, VERITY[arch], ROOT[arch])
    name = {"x86_64": "root-x86-64-verity", "aarch64": "root-arm64-verity"}[arch]
    by_arch = marks(path)
    assert set(by_arch) == {arch}
    assert by_arch[arch] in (
        f"it has a partition of the type {name}",
        f"it has a partition of the type {name.removesuffix('-verity')}",
    )
    assert marks(large_sectors(path)) == by_arch
    assert not marks(table(tmp_path / "plain", LINUX, LINUX))
    assert set(marks(table(tmp_path / "both", *ROOT.values()))) == set(ARCHES)


@pytest.mark.parametrize("files", [0, 300])
@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("arch", ARCHES)
def test_a_disk_is_told_by_its_boot_loader(
    tmp_path: Path, arch: str, bits: int, files: int
) -> None:
    path = table(tmp_path / "disk", LINUX, ESP)
    start = partitions(reader(path.read_bytes()))[1].start
    esp(path, start, LOADER[arch], bits=bits, files=files)
    where = f"its EFI system partition has the boot loader EFI/BOOT/{LOADER[arch]}"
    assert marks(path) == {arch: where}
    read = reader(path.read_bytes())
    assert names(read, start) == {"LOADER", "EFI"}
    assert len(names(read, start, "EFI", "BOOT")) == files + 3
    assert names(read, start, "EFI", "NONE") == set()


def test_a_boot_loader_in_lower_case_is_found(tmp_path: Path) -> None:
    path = esp(table(tmp_path / "disk", ESP), MIB, "bootaa64.efi")
    assert set(marks(path)) == {"aarch64"}


def test_a_medium_with_an_mbr_or_without_a_table_is_told_by_its_boot_loader(tmp_path: Path) -> None:
    path = esp(
        table(tmp_path / "mbr", "83", "ef", label="dos"), 5 * MIB, LOADER["aarch64"], bits=16
    )
    assert set(marks(path)) == {"aarch64"}
    path = tmp_path / "whole"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
    assert set(marks(esp(path, 0, LOADER["x86_64"]))) == {"x86_64"}


def test_the_boot_loader_counts_and_not_the_types_beside_it(tmp_path: Path) -> None:
    path = esp(table(tmp_path / "disk", ESP, ROOT["x86_64"]), MIB, LOADER["aarch64"])
    assert set(marks(path)) == {"aarch64"}


def test_a_medium_for_both_arches_is_none_of_another(tmp_path: Path) -> None:
    path = esp(table(tmp_path / "disk", ESP, ROOT["x86_64"]), MIB, *LOADER.values())
    for arch in ARCHES:
        target.check_disk(path, "raw", arch, "it")


def refused(spec: MachineSpec) -> str:
    with pytest.raises(UsageError) as caught:
        target.check(spec)
    return caught.value.what


def test_the_disks_that_a_machine_boots_from_are_checked(tmp_path: Path) -> None:
    path = table(tmp_path / "disk", ROOT["aarch64"])
    uefi = Firmware(FirmwareKind.UEFI)
    wrong = Disk("root", base=path)
    own = Disk("own", size=MIB, boot_index=0)
    message = f"machine m: disk root, {path}, is made for aarch64, not for x86_64"
    assert refused(MachineSpec("m", "x86_64", uefi, disks=(wrong,))) == message
    first = Disk("root", base=path, boot_index=0)
    assert refused(MachineSpec("m", "x86_64", uefi, disks=(first,))) == message
    kernel = Firmware(FirmwareKind.KERNEL, tmp_path / "no kernel")
    assert refused(MachineSpec("m", "x86_64", kernel, disks=(first,))) == message
    # A disk for the guest to read, or to write an image of another architecture to.
    target.check(MachineSpec("m", "x86_64", uefi, disks=(own, wrong)))
    target.check(MachineSpec("m", "x86_64", kernel, disks=(wrong,)))
    target.check(MachineSpec("m", "aarch64", uefi, disks=(first,)))


@pytest.mark.parametrize("options", [(), ("-c",)])
def test_a_qcow2_image_is_read_like_its_disk(tmp_path: Path, options: tuple[str, ...]) -> None:
    need("qemu-img")
    path = table(tmp_path / "disk", LINUX, LINUX, ESP, ROOT["x86_64"])
    start = partitions(reader(path.read_bytes()))[2].start
    esp(path, start, LOADER["aarch64"], files=100)
    image, overlay = tmp_path / "a, b.qcow2", tmp_path / "overlay.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(path), str(image)]
    subprocess.run(command, check=True)
    backed = ["-b", str(image), "-F", "qcow2", str(overlay)]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backed], check=True)
    for file in (image, overlay):
        target.check_disk(file, "qcow2", "aarch64", "it")
        with pytest.raises(UsageError, match="made for aarch64") as caught:
            target.check_disk(file, "qcow2", "x86_64", "it")
        assert "BOOTAA64.EFI" in caught.value.evidence
    image.unlink()
    overlay.touch()
    target.check_disk(overlay, "qcow2", "x86_64", "it")  # QEMU says that its base is missing


def damaged(content: bytes, seed: int) -> bytes:
    changed = bytearray(content)
    source = random.Random(seed)
    for _ in range(source.randrange(1, 60)):
        # Most of it in the headers: of the table, of the file system, of its directories.
        at = source.choice((512, 1024, MIB, MIB + 16 * 1024)) + source.randrange(700)
        if at < len(changed):
            changed[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
    return bytes(changed)


def test_a_damaged_disk_is_read_in_bounds_and_without_an_error(tmp_path: Path) -> None:
    path = esp(
        table(tmp_path / "disk", ESP, ROOT["x86_64"]), MIB, LOADER["aarch64"], bits=16, files=50
    )
    content = path.read_bytes()[: 4 * MIB]
    for seed in range(400):
        hostile = damaged(content, seed)
        amount = 0

        def read(start: int, size: int, hostile: bytes = hostile) -> bytes:
            nonlocal amount
            amount += size
            assert start >= 0
            assert amount < 32 * MIB
            return hostile[start : start + size]

        target.disk_marks(read)


def test_an_offset_beyond_the_end_of_the_disk_is_read_as_nothing(tmp_path: Path) -> None:
    need("qemu-img")
    path = table(tmp_path / "disk", ESP)
    for start in (2**32, 2**55, 2**64 - 1):
        with path.open("r+b") as file:
            file.seek(1024 + 32)
            file.write(start.to_bytes(8, "little"))
        image = tmp_path / f"{start}.qcow2"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(path), str(image)]
        subprocess.run(command, check=True)
        target.check_disk(path, "raw", "x86_64", "it")
        target.check_disk(image, "qcow2", "x86_64", "it")
    kernel = bytearray(pe(0x8664))
    kernel[60:64] = b"\xff" * 4
    (tmp_path / "kernel").write_bytes(kernel)
    target.check_kernel(tmp_path / "kernel", "aarch64", "it")


def loop(content: bytearray, start: int) -> None:
    """Let each entry of a FAT32 point to itself."""
    reserved = struct.unpack_from("<H", content, start + 14)[0]
    at = start + reserved * 512
    for number in range(2, 64):
        struct.pack_into("<I", content, at + number * 4, number)


def test_a_directory_without_an_end_is_read_in_bounds(tmp_path: Path) -> None:
    path = esp(table(tmp_path / "disk", ESP), MIB, "OTHER.EFI", files=40)
    content = bytearray(path.read_bytes())
    loop(content, MIB)
    reads = 0

    def read(start: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 1000
        return bytes(content[start : start + size])

    assert target.disk_marks(read) == {}


@pytest.mark.parametrize(
    "make", [lambda: b"", lambda: bytes(MIB), lambda: random.Random(1).randbytes(MIB)]
)
def test_unknown_content_is_accepted(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = tmp_path / "disk"
    path.write_bytes(make())
    for arch in ARCHES:
        target.check_disk(path, "raw", arch, "it")
        target.check_disk(path, "qcow2", arch, "it")
        target.check_kernel(path, arch, "it")
