"""The architectures of guests: one row each, with every fact that depends on the architecture.

A new architecture is a new row. Nothing else in Harness branches on an architecture's name.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from uuid import UUID

from harness.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class ProbeMachine:
    """The machine that the guest code of :mod:`harness.host.probe` is written for.

    Attributes:
        options: QEMU's options, in pairs; the chardev ``progress`` receives the progress bytes.
        image_option: The option that takes the guest code.
        rom: Whether the code runs as firmware: the image is then a ROM of 64 KiB with a reset vector.
        assembler: Debian's package with an assembler for the code.
    """

    options: tuple[tuple[str, str], ...]
    image_option: str
    rom: bool
    assembler: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """A set of instructions that an image may be built for.

    Attributes:
        cpu_tcg: The CPU model that carries it at the lowest cost under TCG.
        flags: What ``/proc/cpuinfo`` says of a host's processor that carries it.
    """

    cpu_tcg: str
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks by which a kernel or a disk is known to be made for an architecture.

    Attributes:
        pe: Machine types in the COFF header of an EFI program that its firmware or kernel loader starts
            (PE format, "Machine Types").
        elf: Values of ``e_machine`` in the header of an ELF kernel (``elf.h``).
        kernel: A magic number of Linux kernels, and its offset.
        efi_loader: The boot loader of a removable medium, below ``EFI/BOOT`` (UEFI specification 2.10,
            section 3.5.1.1); its name in a FAT file system is short, 8.3.
        partitions: Types of GPT partitions by name (UAPI.2, "Discoverable Partitions Specification").
    """

    pe: frozenset[int]
    elf: frozenset[int]
    kernel: tuple[bytes, int]
    efi_loader: str
    partitions: Mapping[str, UUID]


@dataclass(frozen=True, slots=True)
class Arch:
    """The facts of one architecture.

    Attributes:
        name: The name that QEMU and ``uname -m`` use.
        aliases: Other names of it that :func:`platform.machine` returns.
        oci: The name in an image index: a value of GOARCH (OCI image specification, image-index.md).
        systemd: The name that systemd gives it: ``%a`` in ``sysupdate.d(5)``.
        qemu: QEMU's program.
        qemu_package: Debian's package of that program.
        uefi_package: Debian's package of the UEFI firmware.
        has_bios: Whether QEMU brings a BIOS (SeaBIOS) and loads it by itself.
        machine: The machine type with the version that guests get. An older QEMU gives its own newest
            version (:attr:`harness.qemu.binary.Qemu.machine`).
        machine_tcg: Leading options of the machine type under TCG.
        machine_kvm: The same under KVM.
        machine_options: Further options of the machine type.
        uefi_tcg_options: Those that a machine with UEFI has besides under TCG.
        uefi_tcg_complaints: The kinds of complaints that Linux has because of them: no findings.
        uefi_boot: QEMU's option ``-boot`` for a machine with UEFI; empty for none.
        tcg_threads: Whether TCG gives each virtual CPU a thread of its own, ``multi``, or has all take
            turns in one, ``single``.
        has_smm: Whether the machine type has System Management Mode, and the option ``smm``.
        smbios_needs_uefi: Whether the guest can read SMBIOS only where UEFI publishes the tables.
        kernel_boot_excludes_tpm: Whether QEMU's direct kernel boot breaks the tables of a TPM.
        has_vmgenid: Whether QEMU has the VM generation ID device, by which Linux notices that it runs in
            a fork.
        reseed_code: Machine code for Linux that reseeds the random pool of a fork and ends; empty where
            ``has_vmgenid`` makes it needless. :mod:`harness.profiles._reseed` says what it does.
        display: The display adapter.
        has_vga: Whether that adapter is a VGA, with a text mode, and the machine has a PC's keyboard.
        tpm: The device of a TPM.
        console: Linux' name of the serial port with the console.
        baselines: The sets of instructions that an image may declare, the smallest first.
        baseline: The name of the one for an image that declares none.
        cpus_kvm: The CPU models to try under KVM, the preferred one first.
        emulation: How many times as long a boot takes under TCG as under KVM.
        probe: The machine of the accelerator probe.
        marks: The marks of what is made for it.
    """

    name: str
    aliases: tuple[str, ...]
    oci: str
    systemd: str
    qemu: str
    qemu_package: str
    uefi_package: str
    has_bios: bool
    machine: str
    machine_tcg: tuple[str, ...]
    machine_kvm: tuple[str, ...]
    machine_options: tuple[str, ...]
    uefi_tcg_options: tuple[str, ...]
    uefi_tcg_complaints: tuple[str, ...]
    uefi_boot: str
    tcg_threads: str
    has_smm: bool
    smbios_needs_uefi: bool
    kernel_boot_excludes_tpm: bool
    has_vmgenid: bool
    reseed_code: bytes
    display: str
    has_vga: bool
    tpm: str
    console: str
    baselines: Mapping[str, Baseline]
    baseline: str
    cpus_kvm: tuple[str, ...]
    emulation: float
    probe: ProbeMachine
    marks: Marks


# The levels of the x86-64 psABI (section 3.1.1, "Processor Architecture"). "max" carries all three and
# costs the least without the flags for fast string operations: they make Linux and glibc copy and clear
# memory by "rep movsb" and "rep stosb", which TCG emulates byte by byte.
_NO_REP: Final = "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc"
_V2: Final = frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3: Final = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}

_X86_64_BASELINES: Final = MappingProxyType(
    {
        "x86-64-v1": Baseline(_NO_REP, frozenset()),
        "x86-64-v2": Baseline(_NO_REP, _V2),
        "x86-64-v3": Baseline(_NO_REP, _V3),
    }
)

# "max" carries both, with SHA-2, CRC-32 and atomic operations, which the emulator runs by the host's.
# Left out is what costs much and no image needs: the cipher of pointer authentication, the large
# registers of SVE and SME. See docs/reference/benchmarks.md, "arm64". MachineSpec.cpu_model tries
# another model; one that is chosen here changes ``emulation`` below and docs/explanation/deadlines.md.
_LEAN: Final = "max,pauth=off,sve=off,sme=off,lpa2=off"

_AARCH64_BASELINES: Final = MappingProxyType(
    {
        "armv8-a": Baseline(_LEAN, frozenset({"asimd", "fp"})),
        "armv8.2-a": Baseline(_LEAN, frozenset({"asimdrdm", "atomics", "crc32"})),
    }
)

_X86_64: Final = Arch(
    name="x86_64",
    aliases=("amd64",),
    oci="amd64",
    systemd="x86-64",
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    uefi_package="ovmf",
    has_bios=True,
    machine="pc-q35-10.0",
    machine_tcg=(),
    machine_kvm=(),
    # Linux checks its TSC against the HPET. Where there is none, it takes the ACPI timer, finds the TSC
    # of a guest unstable that has to wait for the host's CPUs, and then reads the time from a device.
    # Nothing can be attached to the SATA controller: firmware and kernel would only look for disks.
    machine_options=("vmport=off", "hpet=on", "sata=off"),
    # Linux times its TSC against the PIT. Where the host takes the CPU away in the middle, the result is
    # wrong, and Linux takes it although the HPET contradicts ("PIT calibration deviates from HPET",
    # arch/x86/kernel/tsc.c): the guest's clock then runs many times too fast, and all that it waits for
    # times out. Without a PIT, pit_hpet_ptimer_calibrate_cpu() there reads the HPET twice within
    # microseconds, and takes the TSC for 2 to 33 % slower than it is. The watchdog sees it in seconds,
    # and the guest's clock is the HPET from then on. A BIOS needs the PIT for its own timer.
    uefi_tcg_options=("pit=off",),
    uefi_tcg_complaints=("tsc",),
    uefi_boot="",
    # Two threads wait for each other's locks: a boot of skiff takes a fifth more of the host's CPU time
    # with them, and no less time. See docs/reference/benchmarks.md.
    tcg_threads="single",
    has_smm=True,
    smbios_needs_uefi=False,
    # QEMU 10.0 leaves 160 KiB at the end of RAM free of the initrd (acpi_data_size in
    # hw/i386/x86-common.c). The TPM's event log makes the ACPI tables larger, and the initrd
    # overwrites them.
    kernel_boot_excludes_tpm=True,
    has_vmgenid=True,
    reseed_code=b"",
    display="VGA",
    has_vga=True,
    # QEMU offers the TIS interface on both architectures (docs/specs/tpm.rst of QEMU).
    tpm="tpm-tis",
    console="ttyS0",
    baselines=_X86_64_BASELINES,
    baseline="x86-64-v2",
    # "host" is the processor as it is. Some KVMs refuse one of its registers, and QEMU exits. A plain
    # model then still shows how fast this KVM is.
    cpus_kvm=("host", "qemu64"),
    # skiff boots to its login in about 70 s under TCG and in about 8 s under KVM.
    emulation=8.0,
    probe=ProbeMachine(
        options=(
            ("-machine", "q35"),
            ("-device", "isa-debugcon,iobase=0xe9,chardev=progress"),
            ("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        ),
        image_option="-bios",
        rom=True,
        assembler="binutils-x86-64-linux-gnu",
    ),
    marks=Marks(
        # With those of 32 bits, whose programs and kernels these processors run, too.
        pe=frozenset({0x8664, 0x014C}),
        elf=frozenset({62, 3}),
        # Documentation/arch/x86/boot.rst of Linux, "header".
        kernel=(b"HdrS", 0x202),
        efi_loader="BOOTX64.EFI",
        partitions=MappingProxyType(
            {
                "root-x86-64": UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
                "root-x86-64-verity": UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
                "usr-x86-64": UUID("8484680c-9521-48c6-9c11-b0720656f69e"),
                "usr-x86-64-verity": UUID("77ff5f63-e7b6-4633-acf4-1565b864c0e6"),
            }
        ),
    ),
)

# The arguments of a system call are in x0 and x1, its number is in x8 (syscall(2); the numbers are those
# of include/uapi/asm-generic/unistd.h of Linux).
_AARCH64_RESEED: Final = struct.pack(
    "<7I",
    0xD2800000,  # mov x0, #0           standard input
    0x528A40E1,  # mov w1, #0x5207      RNDRESEEDCRNG
    0xD28003A8,  # mov x8, #29          ioctl
    0xD4000001,  # svc #0
    0x4B0003E0,  # neg w0, w0           the error number
    0xD2800BA8,  # mov x8, #93          exit
    0xD4000001,  # svc #0
)

_AARCH64: Final = Arch(
    name="aarch64",
    aliases=("arm64",),
    oci="arm64",
    systemd="arm64",
    qemu="qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    uefi_package="qemu-efi-aarch64",
    has_bios=False,
    machine="virt-10.0",
    machine_tcg=("gic-version=3",),
    machine_kvm=("gic-version=max",),
    machine_options=(),
    uefi_tcg_options=(),
    uefi_tcg_complaints=(),
    # EDK2 waits 5 s for a key before it starts a system. QEMU's boot menu with a time of its own
    # replaces that (GetFrontPageTimeoutFromQemu in OvmfPkg/Library/QemuBootOrderLib).
    uefi_boot="menu=on,splash-time=0",
    # As on x86-64: a thread for each CPU costs a fifth more.
    tcg_threads="single",
    has_smm=False,
    smbios_needs_uefi=True,
    kernel_boot_excludes_tpm=False,
    # QEMU 10.0 builds hw/acpi/vmgenid.c for x86 only, although Linux 6.10 and later have a driver for a
    # device tree as well (Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml).
    has_vmgenid=False,
    reseed_code=_AARCH64_RESEED,
    # UEFI hands its frame buffer on, and each Linux has a driver for that (efifb). A virtio-gpu's has no
    # address (EDK2, OvmfPkg/VirtioGpuDxe: PixelBltOnly), and kernels for the cloud lack its driver.
    display="ramfb",
    has_vga=False,
    tpm="tpm-tis-device",
    console="ttyAMA0",
    baselines=_AARCH64_BASELINES,
    baseline="armv8-a",
    cpus_kvm=("host",),
    # skiff takes as much of the host's CPU time to its login as on x86-64.
    emulation=8.0,
    probe=ProbeMachine(
        options=(("-machine", "virt,gic-version=max"), ("-serial", "chardev:progress")),
        image_option="-kernel",
        rom=False,
        assembler="binutils-aarch64-linux-gnu",
    ),
    marks=Marks(
        pe=frozenset({0xAA64}),
        elf=frozenset({183}),
        # Documentation/arch/arm64/booting.rst of Linux, "magic".
        kernel=(b"ARM\x64", 56),
        efi_loader="BOOTAA64.EFI",
        partitions=MappingProxyType(
            {
                "root-arm64": UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
                "root-arm64-verity": UUID("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
                "usr-arm64": UUID("b0e01050-ee5f-4390-949a-9101b17104e9"),
                "usr-arm64-verity": UUID("6e11a4e7-fbca-4ded-b9e9-e1a512bb664e"),
            }
        ),
    ),
)

_ROWS: Final = {row.name: row for row in (_X86_64, _AARCH64)}

ARCHES: Final = tuple(_ROWS)
"""The names of all architectures, the default one first."""


def of(name: str) -> Arch:
    """Return the row of an architecture.

    Raises:
        UnknownNameError: No architecture has this name; lists those that exist.
    """
    row = _ROWS.get(name)
    if row is None:
        raise UnknownNameError("arch", name, ARCHES)
    return row


def baseline(arch: str, name: str = "") -> Baseline:
    """Return a baseline of an architecture, its default one if the name is empty.

    Raises:
        UnknownNameError: There is no such architecture or baseline.
    """
    row = of(arch)
    level = row.baselines.get(name or row.baseline)
    if level is None:
        raise UnknownNameError(f"baseline of {arch}", name, row.baselines)
    return level


def host() -> str:
    """Return the architecture of this host, by QEMU's name where Harness has a row for it."""
    machine = platform.machine()
    return next((row.name for row in _ROWS.values() if machine in row.aliases), machine)
