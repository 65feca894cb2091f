"""The frozen description that a machine is started from.

A spec describes only the parts of a machine that its guest can see: equal specs start equal machines.
Paths of overlays, sockets and ports on the host are allocations, which belong to one start of a machine
(:mod:`harness.qemu.argv`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from harness import arch as arches
from harness.credentials import passage
from harness.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

LAN: Final = "lan"
"""The name of the segment that the members of a cluster are on."""

SERIAL_LENGTH: Final = 20
"""Longest serial of a virtio-blk disk: VIRTIO_BLK_ID_BYTES, virtio 1.2 section 5.2.6.1."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid {kind} name (at most 31 lower-case letters, digits and '-')"
        )


class FirmwareKind(StrEnum):
    """The firmware that starts the guest's kernel."""

    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"
    BIOS = "bios"
    KERNEL = "kernel"


class ConsoleDevice(StrEnum):
    """The device of the guest's console."""

    SERIAL = "serial"
    VIRTIO = "virtio"


@dataclass(frozen=True, slots=True)
class Account:
    """A user account of the guest, for logging in.

    Attributes:
        user: The user's name.
        password: The password on the console; empty if the account has none.
    """

    user: str
    password: str = ""


@dataclass(frozen=True, slots=True)
class Firmware:
    """How a machine boots.

    Attributes:
        kind: The firmware, or ``kernel`` for QEMU's direct boot of a Linux kernel.
        kernel: The path of the kernel; only with ``kernel``.
        initrd: The path of the initramfs; only with ``kernel``.
        cmdline: The kernel's command line; only with ``kernel``.
    """

    kind: FirmwareKind
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""

    def __post_init__(self) -> None:
        if (self.kind is FirmwareKind.KERNEL) != (self.kernel is not None):
            raise UsageError("firmware 'kernel' needs the path of a kernel, and only it takes one")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine.

    The machine writes to its own overlay; ``base`` never changes, unless ``in_place`` is set.

    Attributes:
        name: The name among the machine's disks.
        base: The file with the initial content; ``None`` for a blank disk.
        format: The format of ``base``: ``raw`` or ``qcow2``.
        size: Bytes; required for a blank disk, otherwise the overlay grows to this size.
        serial: The serial that the guest sees; the name if empty.
        readonly: Whether the guest can only read it.
        in_place: Write to ``base`` itself, which is then required.
        boot_index: The order in which the firmware tries disks, 0 first; ``None`` leaves the disk to
            the firmware. Direct kernel boot tries no disks, so it has no effect there.
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
            raise UsageError(
                f"disk {self.name}: unknown format {self.format!r} (choose raw, qcow2)"
            )
        if self.base is None and (self.size is None or self.readonly or self.in_place):
            raise UsageError(f"disk {self.name}: a blank disk needs a size and must be writable")
        _check_bytes(f"disk {self.name}: size", self.size)
        if self.size is not None and (self.size <= 0 or self.size % 512):
            raise UsageError(
                f"disk {self.name}: size must be a multiple of 512 bytes, not {self.size}"
            )
        if not re.fullmatch(rf"[A-Za-z0-9_.-]{{0,{SERIAL_LENGTH}}}", self.serial):
            raise UsageError(
                f"disk {self.name}: serial {self.serial!r} is not valid (at most {SERIAL_LENGTH}"
                " letters, digits and '_.-')"
            )

    @property
    def guest_serial(self) -> str:
        """The serial that the guest sees."""
        return self.serial or self.name[:SERIAL_LENGTH]


@dataclass(frozen=True, slots=True)
class Tpm:
    """A TPM 2.0, emulated by ``swtpm(8)``.

    Attributes:
        state: The folder of the initial state, such as the
            :attr:`tpm_state <harness.machine.Machine.tpm_state>` of a machine that has ended. The
            machine uses a copy. ``None`` is a new TPM.
    """

    state: Path | None = None


@dataclass(frozen=True, slots=True)
class GuestForward:
    """An address on the guest's own network that leads to a service on the host.

    The service's host and port are allocations: specs that differ only in them are equal.

    Attributes:
        name: The service's name among those of the machine.
        address: The IPv4 address that the guest sees, in QEMU's 10.0.2.0/24. QEMU itself uses .2
            (the host), .3 (the name server) and .15 and up (addresses leased by DHCP).
        port: The TCP port that the guest sees.
    """

    name: str
    address: str = "10.0.2.100"
    port: int = 443

    def __post_init__(self) -> None:
        _check_name("service", self.name)
        if not re.fullmatch(r"10\.0\.2\.(1\d\d|2[0-4]\d|25[0-4])", self.address):
            raise UsageError(
                f"service {self.name}: address must be 10.0.2.100 to 10.0.2.254, not {self.address}"
            )
        _check_port(f"service {self.name}", self.port)


def _check_port(owner: str, port: int) -> None:
    if not 0 < port < 65536:
        raise UsageError(f"{owner}: port must be 1 to 65535, not {port}")


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface on QEMU's user-mode network, or on a segment.

    Attributes:
        name: The name among the machine's interfaces.
        forward: Guest TCP ports that are forwarded from ports on the host's loopback.
        outbound: Whether the guest can connect to the host and beyond.
        mac: The MAC address; ``None`` derives one from the names of the machine and the interface.
        guest_forwards: Services that the guest can connect to, with or without ``outbound``.
        segment: The name of the segment that the interface is on, which leads to its machines alone;
            empty for the user-mode network. :meth:`on` returns such an interface.
    """

    name: str = "net0"
    forward: tuple[int, ...] = (22,)
    outbound: bool = False
    mac: str | None = None
    guest_forwards: tuple[GuestForward, ...] = ()
    segment: str = ""

    def __post_init__(self) -> None:
        _check_name("nic", self.name)
        if self.segment:
            _check_name("segment", self.segment)
        if self.segment and (self.forward or self.outbound or self.guest_forwards):
            raise UsageError(
                f"nic {self.name}: on segment {self.segment} it reaches neither the host nor a service",
                hint="Nic.on(segment), beside a Nic() for SSH and services",
            )
        for port in self.forward:
            _check_port(f"nic {self.name}", port)
        places = [(forward.address, forward.port) for forward in self.guest_forwards]
        if twice := _duplicates(f"{address}:{port}" for address, port in places):
            raise UsageError(f"nic {self.name}: two services at {twice}")

    @classmethod
    def on(cls, segment: str, name: str = "", *, mac: str | None = None) -> Self:
        """Return an interface on a segment.

        Args:
            segment: The name of the segment.
            name: The name among the machine's interfaces; the segment's by default.
            mac: The MAC address; ``None`` derives one from the names of the machine and the interface.
        """
        return cls(name or segment, forward=(), mac=mac, segment=segment)


def _check_bytes(what: str, size: object) -> None:
    """Refuse a size as the catalogue writes it, ``512MiB``: a caller of Python has numbers."""
    if size is not None and not isinstance(size, int):
        raise UsageError(
            f"{what} is a number of bytes, not {size!r}",
            hint="write 512 * MIB; harness.MIB and harness.GIB are the units",
        )


def _duplicates(values: Iterable[str]) -> str:
    """Return the values that occur more than once, for a message; empty if there are none."""
    counts = Counter(values)
    return ", ".join(sorted(value for value, count in counts.items() if count > 1))


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The machine that a guest sees.

    Attributes:
        name: The machine's name in logs and evidence.
        arch: A name from :data:`harness.arch.ARCHES`.
        firmware: How the machine boots.
        cpus: Number of virtual CPUs.
        memory: Bytes of RAM.
        disks: Disks, in the order in which the guest detects them.
        nics: Network interfaces.
        console: The device of the console.
        credentials: systemd credentials, name and value (``systemd-creds(1)``): passed in SMBIOS
            strings (``smbios-type-11(7)``); in fw_cfg where they are too large for these, or the
            machine has no SMBIOS. :mod:`harness.credentials` names the limits.
        display: Whether the machine has a display adapter, for screenshots.
        baseline: The instructions that the guest is built for, a name from
            :attr:`harness.arch.Arch.baselines`; empty for the architecture's default.
        cpu_model: QEMU's name of the CPU model; ``None`` takes the one that carries the baseline at the
            lowest cost.
        tpm: The TPM; ``None`` for a machine without one.
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
    baseline: str = ""
    cpu_model: str | None = None
    tpm: Tpm | None = None

    def __post_init__(self) -> None:
        _check_name("machine", self.name)
        row = arches.of(self.arch)
        arches.baseline(self.arch, self.baseline)
        if self.cpus < 1:
            raise UsageError(f"machine {self.name}: cpus must be at least 1, not {self.cpus}")
        _check_bytes(f"machine {self.name}: memory", self.memory)
        if self.memory < 32 * MIB or self.memory % MIB:
            raise UsageError(
                f"machine {self.name}: memory must be a whole number of MiB, at least 32, not"
                f" {self.memory} bytes"
            )
        kernel_boot = self.firmware.kind is FirmwareKind.KERNEL
        if self.tpm and kernel_boot and row.kernel_boot_excludes_tpm:
            raise UsageError(
                f"machine {self.name}: with direct kernel boot QEMU puts the initrd over the ACPI"
                " tables of a machine that has a TPM",
                hint="boot it by UEFI, or without a TPM",
            )
        for kind, names in (
            ("disk", [disk.name for disk in self.disks]),
            ("serial", [disk.guest_serial for disk in self.disks]),
            ("nic", [nic.name for nic in self.nics]),
            ("service", [forward.name for nic in self.nics for forward in nic.guest_forwards]),
            ("credential", [name for name, _ in self.credentials]),
        ):
            if twice := _duplicates(names):
                raise UsageError(f"machine {self.name}: two {kind}s named {twice}")
        passage(self.credentials, smbios=self.has_smbios)

    @property
    def has_smbios(self) -> bool:
        """Whether the guest can read SMBIOS tables."""
        row = arches.of(self.arch)
        return not row.smbios_needs_uefi or self.firmware.kind is not FirmwareKind.KERNEL

    def port(self, nic: Nic) -> str:
        """Return the name of an interface's port on its segment.

        That is the machine's, so that words such as ``partition`` take machines; a second interface on
        the same segment has its own name behind it.
        """
        first = next(other for other in self.nics if other.segment == nic.segment)
        return self.name if nic == first else f"{self.name}.{nic.name}"

    def mac(self, nic: Nic) -> str:
        """Return the MAC address of ``nic``: locally administered, and the same for equal names."""
        if nic.mac:
            return nic.mac
        digest = hashlib.sha256(f"{self.name}/{nic.name}".encode()).digest()
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def with_guest_forwards(spec: MachineSpec, forwards: Sequence[GuestForward]) -> MachineSpec:
    """Return the spec with these guest forwards on the first interface, and with no others.

    Raises:
        UsageError: The machine has no interface.
    """
    if not spec.nics:
        if forwards:
            raise UsageError(
                f"machine {spec.name} has no interface to reach a service by",
                hint="give it an interface, or no services",
            )
        return spec
    first, *others = (replace(nic, guest_forwards=()) for nic in spec.nics)
    return replace(spec, nics=(replace(first, guest_forwards=tuple(forwards)), *others))


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GiB``, ``512MiB`` or ``4096``.

    Raises:
        UsageError: The text is not a whole number, alone or with the suffix KiB, MiB or GiB.
    """
    match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB)?", text.strip())
    if not match:
        raise UsageError(
            f"{text!r} is not a size (a whole number and KiB, MiB or GiB, such as 4GiB)"
        )
    return int(match[1]) * {None: 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[match[2]]


def format_size(size: float) -> str:
    """Return a number of bytes as text for a person: ``4.0 GiB``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"
