"""The frozen description that a machine is started from.

A spec holds what the guest can see and nothing of where things lie on the host: equal specs start
equal machines. Paths of overlays, sockets and ports are allocations, made when a machine starts
(:mod:`harness.qemu.argv`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from harness.errors import UnknownNameError, UsageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

SERIAL_LENGTH: Final = 20
"""Longest serial of a virtio-blk disk: VIRTIO_BLK_ID_BYTES, virtio 1.2 section 5.2.6.1."""

ARCHES: Final = ("x86_64", "aarch64")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a {kind} name is at most 31 lower-case letters, digits and '-', not {name!r}"
        )


class FirmwareKind(StrEnum):
    """What runs before the guest's kernel."""

    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"
    BIOS = "bios"
    KERNEL = "kernel"


class ConsoleDevice(StrEnum):
    """The device of the guest's console."""

    SERIAL = "serial"
    VIRTIO = "virtio"


@dataclass(frozen=True, slots=True)
class Firmware:
    """How a machine boots.

    Attributes:
        kind: The firmware, or ``kernel`` for QEMU's direct boot of a Linux kernel.
        kernel: The kernel's path; only with ``kernel``.
        initrd: The initramfs' path; only with ``kernel``.
        cmdline: The kernel's command line; only with ``kernel``.
    """

    kind: FirmwareKind
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""

    def __post_init__(self) -> None:
        if (self.kind is FirmwareKind.KERNEL) != (self.kernel is not None):
            raise UsageError("firmware 'kernel' and a kernel's path go together")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine.

    The machine writes to an overlay of its own; ``base`` is never changed, unless ``in_place``.

    Attributes:
        name: Its name among the machine's disks.
        base: What it starts with; ``None`` is a blank disk.
        format: The format of ``base``: ``raw`` or ``qcow2``.
        size: Bytes; required for a blank disk, otherwise grows the overlay.
        serial: What the guest sees as its serial; the name if empty.
        readonly: Whether the guest can write to it.
        in_place: Write to ``base`` itself, which must be given.
        boot_index: Order in which the firmware tries it, 0 first; ``None`` is not tried by request.
    """

    name: str
    base: Path | None = None
    format: str = "raw"
    size: int | None = None
    serial: str = ""
    readonly: bool = False
    in_place: bool = False
    boot_index: int | None = None

    def __post_init__(self) -> None:
        _check_name("disk", self.name)
        if self.format not in ("raw", "qcow2"):
            raise UsageError(f"disk {self.name}: format is raw or qcow2, not {self.format!r}")
        if self.base is None and (self.size is None or self.readonly or self.in_place):
            raise UsageError(f"disk {self.name}: a blank disk needs a size and is writable")
        if self.size is not None and (self.size <= 0 or self.size % 512):
            raise UsageError(f"disk {self.name}: size is a multiple of 512 bytes, not {self.size}")
        if not re.fullmatch(rf"[A-Za-z0-9_.-]{{0,{SERIAL_LENGTH}}}", self.serial):
            raise UsageError(
                f"disk {self.name}: a serial is at most {SERIAL_LENGTH} letters, digits and '_.-',"
                f" not {self.serial!r}"
            )

    @property
    def guest_serial(self) -> str:
        """The serial that the guest sees."""
        return self.serial or self.name[:SERIAL_LENGTH]


@dataclass(frozen=True, slots=True)
class Tpm:
    """A TPM 2.0, emulated by ``swtpm(8)``.

    Attributes:
        state: The folder with what it holds, such as the
            :attr:`tpm_state <harness.machine.Machine.tpm_state>` of a machine that has ended; it is
            copied, never changed. ``None`` is a TPM that nobody has used.
    """

    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """A service that a guest can reach, at an address that only its own network has.

    Where the service listens on the host is an allocation: specs with other ports there are equal.

    Attributes:
        name: The service's name among those of the machine.
        address: The IPv4 address that the guest sees, in QEMU's 10.0.2.0/24 and none of its own
            (.2 the host, .3 the name server, .15 and up what DHCP hands out).
        port: The TCP port that the guest sees.
    """

    name: str
    address: str = "10.0.2.100"
    port: int = 443

    def __post_init__(self) -> None:
        _check_name("service", self.name)
        if not re.fullmatch(r"10\.0\.2\.(1\d\d|2[0-4]\d|25[0-4])", self.address):
            raise UsageError(
                f"service {self.name}: an address is 10.0.2.100 to 10.0.2.254, not {self.address}"
            )
        if not 0 < self.port < 65536:
            raise UsageError(f"service {self.name}: a port is 1 to 65535, not {self.port}")


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface on QEMU's user-mode network.

    Attributes:
        name: Its name among the machine's interfaces.
        forward: Guest TCP ports that a port of the host's loopback leads to.
        outbound: Whether the guest can reach the host and beyond; off unless a test asks.
        mac: The address; ``None`` derives one from the machine's and the interface's names.
        reach: Services that the guest can reach, whether or not it is let out.
    """

    name: str = "net0"
    forward: tuple[int, ...] = (22,)
    outbound: bool = False
    mac: str | None = None
    reach: tuple[Reach, ...] = ()

    def __post_init__(self) -> None:
        _check_name("nic", self.name)
        for port in self.forward:
            if not 0 < port < 65536:
                raise UsageError(f"nic {self.name}: a port is 1 to 65535, not {port}")
        places = [(each.address, each.port) for each in self.reach]
        if twice := {place for place in places if places.count(place) > 1}:
            where = ", ".join(f"{address}:{port}" for address, port in sorted(twice))
            raise UsageError(f"nic {self.name}: two services at {where}")


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that decides what machine a guest sees.

    Attributes:
        name: The machine's name in logs and evidence.
        arch: ``x86_64`` or ``aarch64``.
        firmware: How it boots.
        cpus: Number of virtual CPUs.
        memory: Bytes of RAM.
        disks: In the order in which the guest finds them.
        nics: Network interfaces.
        console: The device of the console.
        credentials: systemd credentials, name and value, handed over in SMBIOS type 11 strings
            (``systemd-creds(1)``, ``smbios-type-11(7)``), or in fw_cfg where a machine has no SMBIOS.
        display: Whether it has a VGA adapter, for screenshots.
        cpu_model: QEMU's name of the CPU model; ``None`` takes the accelerator's best.
        tpm: Its TPM; ``None`` is none.
    """

    name: str
    arch: str
    firmware: Firmware
    cpus: int = 2
    memory: int = 2 * GIB
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = (Nic(),)
    console: ConsoleDevice = ConsoleDevice.SERIAL
    credentials: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    display: bool = False
    cpu_model: str | None = None
    tpm: Tpm | None = None

    def __post_init__(self) -> None:
        _check_name("machine", self.name)
        if self.arch not in ARCHES:
            raise UnknownNameError("arch", self.arch, ARCHES)
        if self.cpus < 1:
            raise UsageError(f"machine {self.name}: needs at least one CPU, not {self.cpus}")
        if self.memory < 32 * MIB or self.memory % MIB:
            raise UsageError(
                f"machine {self.name}: memory is whole MiB from 32, not {self.memory} bytes"
            )
        if self.tpm and self.arch == "x86_64" and self.firmware.kind is FirmwareKind.KERNEL:
            # QEMU 10.0 leaves 160 KiB at the end of RAM free of the initrd (acpi_data_size in
            # hw/i386/x86-common.c); with the TPM's log the ACPI tables take more, and are lost.
            raise UsageError(
                f"machine {self.name}: with direct kernel boot QEMU puts the initrd over the ACPI"
                " tables of a machine that has a TPM",
                hint="boot it by UEFI, or without a TPM",
            )
        for kind, names in (
            ("disk", [disk.name for disk in self.disks]),
            ("serial", [disk.guest_serial for disk in self.disks]),
            ("nic", [nic.name for nic in self.nics]),
            ("service", [each.name for nic in self.nics for each in nic.reach]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise UsageError(
                    f"machine {self.name}: two {kind}s named {', '.join(sorted(twice))}"
                )

    def mac(self, nic: Nic) -> str:
        """Return the MAC address of ``nic``: locally administered, stable for equal names."""
        if nic.mac:
            return nic.mac
        digest = hashlib.sha256(f"{self.name}/{nic.name}".encode()).digest()
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def reaching(spec: MachineSpec, services: Sequence[Reach]) -> MachineSpec:
    """Return the spec of a machine that reaches these services, by its first interface, and no other.

    Raises:
        UsageError: if it has no interface.
    """
    if not spec.nics:
        if services:
            raise UsageError(f"machine {spec.name} has no interface to reach a service by")
        return spec
    first, *others = (replace(nic, reach=()) for nic in spec.nics)
    return replace(spec, nics=(replace(first, reach=tuple(services)), *others))


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GiB``, ``512MiB`` or ``4096``.

    Raises:
        UsageError: if it is not a whole number with one of the suffixes KiB, MiB, GiB.
    """
    match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB)?", text.strip())
    if not match:
        raise UsageError(f"a size is a whole number and KiB, MiB or GiB, not {text!r}")
    return int(match[1]) * {None: 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[match[2]]


def format_size(size: float) -> str:
    """Return bytes as a person reads them: ``4.0 GiB``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"
