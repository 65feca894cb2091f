"""QEMU's command line: a pure function of a spec and its allocations.

Nothing here opens a file or inspects the host. The same spec with :func:`by_hand` allocations gives
the command that a person pastes to start the same machine. All options exist in QEMU 8.2 and later,
``qemu-system-x86_64(1)``.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from harness import arch
from harness.credentials import PREFIX, passage
from harness.qemu import guest_forward
from harness.qemu.firmware import FlashFirmware
from harness.spec import ConsoleDevice, FirmwareKind, MachineSpec, Nic


@dataclass(frozen=True, slots=True)
class DiskFile:
    """The file behind a disk, which the machine writes to.

    Attributes:
        path: The file.
        format: ``raw`` or ``qcow2``.
    """

    path: Path
    format: str


@dataclass(frozen=True, slots=True)
class Ram:
    """The file behind a machine's RAM; a machine that can be saved or forked has one.

    Attributes:
        path: The file.
        private: Whether the machine's writes stay private (a fork) or go to the file.
        saved: The saved RAM that the file started as a copy of. :func:`by_hand` maps it instead.
    """

    path: Path
    private: bool
    saved: Path | None = None


@dataclass(frozen=True, slots=True)
class Allocations:
    """The resources of this host that a machine uses.

    Attributes:
        qemu: The program.
        machine: The machine type with its version, such as ``pc-q35-10.0``.
        accel: ``kvm`` or ``tcg``.
        cpu_model: QEMU's name of the CPU model.
        disks: The file of each disk, by the disk's name.
        firmware: The UEFI firmware, or ``None``.
        variables: The machine's own copy of the UEFI variables.
        console_fds: The pipes to write the console's output to and to read its input from; ``None`` uses
            the terminal.
        qmp_fd: The connected socket of the monitor; ``None`` uses :attr:`qmp_path`.
        qmp_path: The path at which the monitor of a machine started by hand listens.
        ram: The file behind the RAM; ``None`` leaves the memory to QEMU.
        incoming: The file with the device state that a fork resumes from.
        services: The host and port at which each service listens, by the service's name.
        tpm_state: The folder of the TPM's state; ``None`` for a machine without a TPM.
        tpm_fd: The connected socket that controls swtpm; ``None`` uses :attr:`tpm_path`.
        tpm_path: The path at which a swtpm started by hand listens.
        forwarder: The command that QEMU runs for each connection to a service.
        credentials: The folder with a file for each credential that is handed over as one.
        segments: The socket that leads to its segment, by the name of the interface; one without is
            alone on its network.
    """

    qemu: Path
    machine: str
    accel: str
    cpu_model: str
    disks: dict[str, DiskFile] = field(default_factory=dict)
    firmware: FlashFirmware | None = None
    variables: Path | None = None
    console_fds: tuple[int, int] | None = None
    qmp_fd: int | None = None
    qmp_path: Path | None = None
    ram: Ram | None = None
    incoming: Path | None = None
    services: dict[str, tuple[str, int]] = field(default_factory=dict)
    tpm_state: Path | None = None
    tpm_fd: int | None = None
    tpm_path: Path | None = None
    forwarder: tuple[str, ...] = field(default_factory=guest_forward.command)
    credentials: Path | None = None
    segments: dict[str, int] = field(default_factory=dict)


def by_hand(allocations: Allocations, directory: Path) -> Allocations:
    """Return the allocations of the same machine for a person, with its console on the terminal.

    Args:
        allocations: The allocations of the run.
        directory: The folder for the sockets of the monitor and the TPM.
    """
    ram = allocations.ram
    if ram is not None and not ram.private:
        ram = Ram(ram.saved, private=True) if ram.saved is not None else None
    return replace(
        allocations,
        console_fds=None,
        qmp_fd=None,
        qmp_path=directory / "qmp.sock",
        tpm_fd=None,
        tpm_path=directory / "swtpm.sock",
        segments={},
        ram=ram,
    )


def build(spec: MachineSpec, allocations: Allocations) -> tuple[str, ...]:
    """Return QEMU's command line, the program first."""
    pairs: list[tuple[str, str]] = [
        ("-name", f"guest={spec.name},debug-threads=on"),
        ("-machine", _machine(spec, allocations)),
        ("-accel", _accel(spec, allocations.accel)),
        ("-cpu", allocations.cpu_model),
        ("-smp", f"cpus={spec.cpus}"),
        ("-m", f"size={spec.memory // 1024 // 1024}M"),
        *_ram(spec, allocations),
        *_firmware(spec, allocations),
        *_monitor(allocations),
        *_console(spec, allocations),
        *_disks(spec, allocations),
        *_nics(spec, allocations),
        ("-object", "rng-random,id=rng0,filename=/dev/urandom"),
        ("-device", "virtio-rng-pci,rng=rng0"),
        *_tpm(spec, allocations),
        *_credentials(spec, allocations),
        *_incoming(allocations),
        ("-display", "none"),
    ]
    if spec.display:
        pairs.append(("-device", arch.of(spec.arch).display))
    argv = [str(allocations.qemu), "-nodefaults", "-no-user-config"]
    for option, value in pairs:
        argv += [option, value]
    # The console must be drained and the monitor attached before the guest's first instruction.
    # A guest's power-off must not end QEMU before the monitor has reported it.
    if allocations.qmp_fd is not None:
        argv += ["-S", "-no-shutdown"]
    return tuple(argv)


def render(argv: tuple[str, ...]) -> str:
    """Return the command for a shell, with one option and its value per line."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n  ".join(lines)


def escape(value: str) -> str:
    """Return ``value`` for QEMU's option syntax, which doubles commas."""
    return value.replace(",", ",,")


def provoked_complaints(spec: MachineSpec, allocations: Allocations) -> tuple[str, ...]:
    """Return the kinds of complaints that the options of a machine provoke from its guest.

    They are names of :data:`harness.console.complaints.COMPLAINTS`.
    """
    return arch.of(spec.arch).uefi_tcg_complaints if _is_uefi_under_tcg(allocations) else ()


def _is_uefi_under_tcg(allocations: Allocations) -> bool:
    return allocations.accel == "tcg" and allocations.firmware is not None


def _machine(spec: MachineSpec, allocations: Allocations) -> str:
    row = arch.of(spec.arch)
    options = [allocations.machine]
    options += row.machine_tcg if allocations.accel == "tcg" else row.machine_kvm
    if row.has_smm:
        # Since version 9.1, QEMU's q35 without SMM has RAM where the guest looks for the memory of a
        # VGA adapter, and all text modes are black (hw/pci-host/q35.c, mch_realize, which returns
        # early; Michael Tokarev on qemu-devel, 17 September 2025, "Re: [PULL 30/63] q35: Introduce
        # smm_ranges property for q35-pci-host").
        smm = spec.display or (allocations.firmware is not None and allocations.firmware.smm)
        options.append(f"smm={'on' if smm else 'off'}")
    options += row.machine_options
    if _is_uefi_under_tcg(allocations):
        options += row.uefi_tcg_options
    bios = spec.firmware.kind is FirmwareKind.BIOS
    # Direct kernel boot on x86-64 begins in SeaBIOS, too.
    if (bios or (spec.firmware.kind is FirmwareKind.KERNEL and row.has_bios)) and not spec.display:
        # SeaBIOS then sends the text of its screen to the serial port: its own complaints, and what
        # a boot loader or a kernel in real mode prints, such as iPXE's ipxe.lkrn.
        options.append("graphics=off")
    if allocations.ram is not None:
        options.append("memory-backend=ram")
    return ",".join(options)


CODE: Final = 256
"""MiB of translated code that TCG keeps. A boot of skiff fills 200, and what it translated is of no use
to the next boot. QEMU keeps 1024 by default, and a machine took all of them after five boots."""


def _accel(spec: MachineSpec, accel: str) -> str:
    if accel != "tcg":
        return accel
    return f"tcg,thread={arch.of(spec.arch).tcg_threads},tb-size={CODE}"


def _ram(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    if allocations.ram is None:
        return []
    path = escape(str(allocations.ram.path))
    backend = f"memory-backend-file,id=ram,size={spec.memory},mem-path={path},"
    # rom=off makes RAM writable whose file is opened read-only (QEMU 8.2).
    private = allocations.ram.private
    backend += "share=off,readonly=on,rom=off,reserve=off" if private else "share=on"
    pairs = [("-object", backend)]
    if arch.of(spec.arch).has_vmgenid:
        # The number changes with each restore: Linux 5.18 and later then reseed their random pool at
        # once (drivers/virt/vmgenid.c).
        pairs.append(("-device", "vmgenid,guid=auto,id=generation"))
    return pairs


def _incoming(allocations: Allocations) -> list[tuple[str, str]]:
    if allocations.incoming is None:
        return []
    # "defer" waits for the monitor, which first sets x-ignore-shared: the RAM is mapped and not
    # part of the state. No command-line option sets that.
    return [("-incoming", "defer")]


def _firmware(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    firmware = spec.firmware
    pairs: list[tuple[str, str]] = []
    if firmware.kernel is not None:
        pairs.append(("-kernel", str(firmware.kernel)))
        if firmware.initrd is not None:
            pairs.append(("-initrd", str(firmware.initrd)))
        if firmware.cmdline:
            pairs.append(("-append", firmware.cmdline))
    if allocations.firmware is not None and allocations.variables is not None:
        kind = allocations.firmware.format
        code = escape(str(allocations.firmware.code))
        variables = escape(str(allocations.variables))
        if boot := arch.of(spec.arch).uefi_boot:
            pairs.append(("-boot", boot))
        if allocations.firmware.smm:
            pairs.append(("-global", "driver=cfi.pflash01,property=secure,value=on"))
        pairs += [
            ("-drive", f"if=pflash,unit=0,format={kind},readonly=on,file={code}"),
            ("-drive", f"if=pflash,unit=1,format={kind},file={variables}"),
        ]
    return pairs


def _monitor(allocations: Allocations) -> list[tuple[str, str]]:
    if allocations.qmp_fd is not None:
        chardev = f"socket,id=qmp,fd={allocations.qmp_fd}"
    elif allocations.qmp_path is not None:
        chardev = f"socket,id=qmp,path={escape(str(allocations.qmp_path))},server=on,wait=off"
    else:
        return []
    return [("-chardev", chardev), ("-mon", "chardev=qmp,mode=control")]


def _console(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    if allocations.console_fds is not None:
        output, typed = allocations.console_fds
        # A pipe, and not a socket: see harness.console.wire. Without `append` QEMU truncates the
        # file, which a pipe refuses; `input-path` is there since QEMU 8.1.
        pairs = [
            ("-add-fd", f"fd={output},set=1"),
            ("-add-fd", f"fd={typed},set=2"),
            (
                "-chardev",
                "file,id=console,path=/dev/fdset/1,append=on,input-path=/dev/fdset/2",
            ),
        ]
    else:
        pairs = [("-chardev", "stdio,id=console,signal=off")]
    if spec.console is ConsoleDevice.VIRTIO:
        pairs += [
            ("-device", "virtio-serial-pci,id=console-bus"),
            ("-device", "virtconsole,bus=console-bus.0,chardev=console"),
        ]
    else:
        pairs.append(("-serial", "chardev:console"))
    return pairs


def _disks(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    pairs = []
    for disk in spec.disks:
        file = allocations.disks[disk.name]
        node = f"disk-{disk.name}"
        # Overlays are removed with the run, so a flush to the host's disk costs time for nothing.
        # The guest still sees a cache that it has to flush.
        blockdev = (
            f"driver={file.format},node-name={node},discard=unmap,cache.no-flush=on,"
            f"file.driver=file,file.filename={escape(str(file.path))},file.discard=unmap,"
            "file.cache.no-flush=on"
        )
        if disk.readonly:
            blockdev += ",read-only=on"
        device = f"virtio-blk-pci,drive={node},id={disk.name},serial={disk.guest_serial}"
        # A kernel that is booted directly is in a ROM with the boot index 0 (qemu-options.hx of QEMU,
        # -kernel; hw/i386/x86-common.c): no disk may have that index, and none is tried.
        if disk.boot_index is not None and spec.firmware.kind is not FirmwareKind.KERNEL:
            device += f",bootindex={disk.boot_index}"
        pairs += [("-blockdev", blockdev), ("-device", device)]
    return pairs


def _tpm(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    if spec.tpm is None:
        return []
    if allocations.tpm_fd is not None:
        chardev = f"socket,id=tpm,fd={allocations.tpm_fd}"
    else:
        chardev = f"socket,id=tpm,path={escape(str(allocations.tpm_path))}"
    return [
        ("-chardev", chardev),
        ("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        ("-device", f"{arch.of(spec.arch).tpm},tpmdev=tpm0"),
    ]


def _nics(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    pairs = []
    for number, nic in enumerate(spec.nics):
        if nic.segment:
            pairs += [
                ("-netdev", _segment(nic, number, allocations)),
                ("-device", _nic_device(spec, nic)),
            ]
            continue
        netdev = f"user,id={nic.name},restrict={'off' if nic.outbound else 'on'}"
        # With port 0 the kernel picks a free port when QEMU binds it; "info usernet" returns it.
        netdev += "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in nic.forward)
        # A connection to that address starts the command, with the connection as its standard input
        # and output; "restrict" does not block it (qemu-system-x86_64(1), guestfwd).
        for forward in nic.guest_forwards:
            host, port = allocations.services[forward.name]
            command = shlex.join((*allocations.forwarder, host, str(port)))
            netdev += f",guestfwd=tcp:{forward.address}:{forward.port}-cmd:{escape(command)}"
        pairs += [("-netdev", netdev), ("-device", _nic_device(spec, nic))]
    return pairs


def _segment(nic: Nic, number: int, allocations: Allocations) -> str:
    descriptor = allocations.segments.get(nic.name)
    if descriptor is None:
        # A hub with nothing else on it: the guest sees a link that is up.
        return f"hubport,id={nic.name},hubid={number}"
    return f"dgram,id={nic.name},local.type=fd,local.str={descriptor}"


def _nic_device(spec: MachineSpec, nic: Nic) -> str:
    # An empty romfile leaves out iPXE, which would cost time at each boot.
    return f"virtio-net-pci,netdev={nic.name},id={nic.name}-device,mac={spec.mac(nic)},romfile="


def _credentials(spec: MachineSpec, allocations: Allocations) -> list[tuple[str, str]]:
    way = passage(spec.credentials, smbios=spec.has_smbios)
    pairs = [("-smbios", f"type=11,value={escape(string)}") for string in way.strings]
    for name, _ in way.files:
        # A file, because one argument has at most 128 KiB (MAX_ARG_STRLEN, execve(2)).
        assert allocations.credentials is not None
        file = escape(str(allocations.credentials / name))
        pairs.append(("-fw_cfg", f"name={PREFIX}{escape(name)},file={file}"))
    return pairs
