"""QEMU's command line: a pure function of a spec and its allocations.

Nothing here opens a file or asks the host. The same spec with :func:`by_hand` allocations gives the
command that a person pastes to get the same machine. Options are those of QEMU 8.2 and later,
``qemu-system-x86_64(1)``.
"""

from __future__ import annotations

import base64
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.qemu import relay
from harness.qemu.firmware import FlashFirmware
from harness.spec import ConsoleDevice, FirmwareKind, MachineSpec, Nic


@dataclass(frozen=True, slots=True)
class DiskFile:
    """The file behind a disk: what the machine writes to.

    Attributes:
        path: The file.
        format: ``raw`` or ``qcow2``.
    """

    path: Path
    format: str


@dataclass(frozen=True, slots=True)
class Ram:
    """The file behind a machine's RAM, which makes it one that can be saved or forked.

    Attributes:
        path: The file.
        private: Whether the machine keeps its writes to itself (a fork); otherwise the file has
            them.
        saved: The saved RAM that the file began as a copy of, which a person's machine maps.
    """

    path: Path
    private: bool
    saved: Path | None = None


@dataclass(frozen=True, slots=True)
class Allocations:
    """What a machine was given on this host.

    Attributes:
        qemu: The program.
        accel: ``kvm`` or ``tcg``.
        cpu_model: QEMU's name of the CPU model.
        disks: By the disk's name.
        firmware: UEFI firmware, or ``None``.
        variables: The machine's own copy of the UEFI variables.
        console_fd: The connected socket that the console is bound to; ``None`` is the terminal.
        qmp_fd: The connected socket that the monitor is bound to; ``None`` is :attr:`qmp_path`.
        qmp_path: Where a monitor by hand listens.
        ram: The file behind the RAM; ``None`` is memory of QEMU's own.
        incoming: The devices' state that a fork continues from.
        services: Where each service that the guest reaches listens: host and port, by its name.
        tpm_state: The folder with what the TPM holds; ``None`` is no TPM.
        tpm_fd: The connected socket that controls swtpm; ``None`` is :attr:`tpm_path`.
        tpm_path: Where a swtpm by hand listens.
    """

    qemu: Path
    accel: str
    cpu_model: str
    disks: dict[str, DiskFile] = field(default_factory=dict)
    firmware: FlashFirmware | None = None
    variables: Path | None = None
    console_fd: int | None = None
    qmp_fd: int | None = None
    qmp_path: Path | None = None
    ram: Ram | None = None
    incoming: Path | None = None
    services: dict[str, tuple[str, int]] = field(default_factory=dict)
    tpm_state: Path | None = None
    tpm_fd: int | None = None
    tpm_path: Path | None = None


def by_hand(allocations: Allocations, directory: Path) -> Allocations:
    """Return the allocations of the same machine for a person: console on the terminal.

    Args:
        allocations: Those of the run.
        directory: Where the monitor's socket may lie.
    """
    ram = allocations.ram
    if ram is not None and not ram.private:
        ram = Ram(ram.saved, private=True) if ram.saved is not None else None
    return replace(
        allocations,
        console_fd=None,
        qmp_fd=None,
        qmp_path=directory / "qmp.sock",
        tpm_fd=None,
        tpm_path=directory / "swtpm.sock",
        ram=ram,
    )


def build(spec: MachineSpec, given: Allocations) -> tuple[str, ...]:
    """Return QEMU's command line, the program first."""
    pairs: list[tuple[str, str]] = [
        ("-name", f"guest={spec.name},debug-threads=on"),
        ("-machine", _machine(spec, given)),
        ("-accel", _accel(given.accel)),
        ("-cpu", given.cpu_model),
        ("-smp", f"cpus={spec.cpus}"),
        ("-m", f"size={spec.memory // 1024 // 1024}M"),
        *_ram(spec, given),
        *_firmware(spec, given),
        *_monitor(given),
        *_console(spec, given),
        *_disks(spec, given),
        *_nics(spec, given),
        ("-object", "rng-random,id=rng0,filename=/dev/urandom"),
        ("-device", "virtio-rng-pci,rng=rng0"),
        *_tpm(spec, given),
        *_credentials(spec),
        *_incoming(given),
        ("-display", "none"),
    ]
    if spec.display:
        pairs.append(("-device", "VGA" if spec.arch == "x86_64" else "virtio-gpu-pci"))
    argv = [str(given.qemu), "-nodefaults", "-no-user-config"]
    for option, value in pairs:
        argv += [option, value]
    # The console must be drained and the monitor attached before the guest's first instruction.
    # A guest's power-off must not end QEMU before the monitor has told of it.
    if given.qmp_fd is not None:
        argv += ["-S", "-no-shutdown"]
    return tuple(argv)


def render(argv: tuple[str, ...]) -> str:
    """Return the command for a shell, one option with its value on each line."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n  ".join(lines)


def escape(value: str) -> str:
    """Return ``value`` for QEMU's option syntax, in which a comma is doubled."""
    return value.replace(",", ",,")


def has_smbios(spec: MachineSpec) -> bool:
    """Whether the guest can read SMBIOS: on aarch64 only UEFI publishes the tables."""
    return spec.arch == "x86_64" or spec.firmware.kind is not FirmwareKind.KERNEL


def _machine(spec: MachineSpec, given: Allocations) -> str:
    backend = ",memory-backend=ram" if given.ram is not None else ""
    return _machine_type(spec, given) + backend


def _machine_type(spec: MachineSpec, given: Allocations) -> str:
    if spec.arch == "aarch64":
        return "virt,gic-version=3" if given.accel == "tcg" else "virt,gic-version=max"
    smm = "on" if given.firmware is not None and given.firmware.smm else "off"
    # The VMware port and the HPET are of no use to a guest and cost it timer calibration.
    machine = f"q35,smm={smm},vmport=off,hpet=off"
    if spec.firmware.kind is FirmwareKind.BIOS and not spec.display:
        # SeaBIOS then speaks on the serial port, where watchers read its complaints.
        machine += ",graphics=off"
    return machine


def _accel(accel: str) -> str:
    return "tcg,thread=multi" if accel == "tcg" else accel


def _ram(spec: MachineSpec, given: Allocations) -> list[tuple[str, str]]:
    if given.ram is None:
        return []
    backend = (
        f"memory-backend-file,id=ram,size={spec.memory},mem-path={escape(str(given.ram.path))}"
    )
    # rom=off: RAM that can be written to, of a file that is opened to be read (QEMU 8.2).
    backend += ",share=off,readonly=on,rom=off,reserve=off" if given.ram.private else ",share=on"
    pairs = [("-object", backend)]
    if spec.arch == "x86_64":
        # A new number after each restore: Linux 5.18 and later then reseed their random pool at
        # once (drivers/virt/vmgenid.c). QEMU has the device for x86 only.
        pairs.append(("-device", "vmgenid,guid=auto,id=generation"))
    return pairs


def _incoming(given: Allocations) -> list[tuple[str, str]]:
    if given.incoming is None:
        return []
    # It waits to be told on the monitor that the RAM is not in the state but mapped, for which
    # there is no option; then to load the state.
    return [("-incoming", "defer")]


def _firmware(spec: MachineSpec, given: Allocations) -> list[tuple[str, str]]:
    firmware = spec.firmware
    pairs: list[tuple[str, str]] = []
    if firmware.kernel is not None:
        pairs.append(("-kernel", str(firmware.kernel)))
        if firmware.initrd is not None:
            pairs.append(("-initrd", str(firmware.initrd)))
        if firmware.cmdline:
            pairs.append(("-append", firmware.cmdline))
    if given.firmware is not None and given.variables is not None:
        kind = given.firmware.format
        code = escape(str(given.firmware.code))
        variables = escape(str(given.variables))
        if given.firmware.smm:
            pairs.append(("-global", "driver=cfi.pflash01,property=secure,value=on"))
        pairs += [
            ("-drive", f"if=pflash,unit=0,format={kind},readonly=on,file={code}"),
            ("-drive", f"if=pflash,unit=1,format={kind},file={variables}"),
        ]
    return pairs


def _monitor(given: Allocations) -> list[tuple[str, str]]:
    if given.qmp_fd is not None:
        chardev = f"socket,id=qmp,fd={given.qmp_fd}"
    elif given.qmp_path is not None:
        chardev = f"socket,id=qmp,path={escape(str(given.qmp_path))},server=on,wait=off"
    else:
        return []
    return [("-chardev", chardev), ("-mon", "chardev=qmp,mode=control")]


def _console(spec: MachineSpec, given: Allocations) -> list[tuple[str, str]]:
    if given.console_fd is not None:
        chardev = f"socket,id=console,fd={given.console_fd}"
    else:
        chardev = "stdio,id=console,signal=off"
    pairs = [("-chardev", chardev)]
    if spec.console is ConsoleDevice.VIRTIO:
        pairs += [
            ("-device", "virtio-serial-pci,id=console-bus"),
            ("-device", "virtconsole,bus=console-bus.0,chardev=console"),
        ]
    else:
        pairs.append(("-serial", "chardev:console"))
    return pairs


def _disks(spec: MachineSpec, given: Allocations) -> list[tuple[str, str]]:
    pairs = []
    for disk in spec.disks:
        file = given.disks[disk.name]
        node = f"disk-{disk.name}"
        # Evidence and overlays die with the run: what a flush costs on the host buys nothing,
        # while the guest still sees a cache it has to flush.
        blockdev = (
            f"driver={file.format},node-name={node},discard=unmap,cache.no-flush=on,"
            f"file.driver=file,file.filename={escape(str(file.path))},file.discard=unmap,"
            "file.cache.no-flush=on"
        )
        if disk.readonly:
            blockdev += ",read-only=on"
        device = f"virtio-blk-pci,drive={node},id={disk.name},serial={disk.guest_serial}"
        if disk.boot_index is not None:
            device += f",bootindex={disk.boot_index}"
        pairs += [("-blockdev", blockdev), ("-device", device)]
    return pairs


def _tpm(spec: MachineSpec, given: Allocations) -> list[tuple[str, str]]:
    if spec.tpm is None:
        return []
    if given.tpm_fd is not None:
        chardev = f"socket,id=tpm,fd={given.tpm_fd}"
    else:
        chardev = f"socket,id=tpm,path={escape(str(given.tpm_path))}"
    # The one interface that QEMU has on both arches (docs/specs/tpm.rst of QEMU).
    device = "tpm-tis" if spec.arch == "x86_64" else "tpm-tis-device"
    return [
        ("-chardev", chardev),
        ("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        ("-device", f"{device},tpmdev=tpm0"),
    ]


def _nics(spec: MachineSpec, given: Allocations) -> list[tuple[str, str]]:
    pairs = []
    for nic in spec.nics:
        netdev = f"user,id={nic.name},restrict={'off' if nic.outbound else 'on'}"
        # Port 0: the kernel picks a free one when QEMU binds it, and QEMU tells which it was.
        netdev += "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in nic.forward)
        # A guest's connection to that address starts the command, which has it as its standard
        # input and output; "restrict" does not concern it (qemu-system-x86_64(1), guestfwd).
        netdev += "".join(
            f",guestfwd=tcp:{each.address}:{each.port}-cmd:"
            + escape(shlex.join(_relay(*given.services[each.name])))
            for each in nic.reach
        )
        pairs += [("-netdev", netdev), ("-device", _nic_device(spec, nic))]
    return pairs


def _relay(host: str, port: int) -> tuple[str, ...]:
    # -I -S: nothing of the environment decides what is imported, and it starts in 30 ms.
    return (sys.executable, "-I", "-S", relay.__file__, host, str(port))


def _nic_device(spec: MachineSpec, nic: Nic) -> str:
    # An empty romfile leaves out iPXE, which would cost the firmware time at each boot.
    return f"virtio-net-pci,netdev={nic.name},id={nic.name}-device,mac={spec.mac(nic)},romfile="


def _credentials(spec: MachineSpec) -> list[tuple[str, str]]:
    pairs = []
    for name, value in spec.credentials:
        encoded = base64.b64encode(value.encode()).decode()
        if has_smbios(spec):
            pairs.append(
                ("-smbios", f"type=11,value=io.systemd.credential.binary:{name}={encoded}")
            )
        else:
            pairs.append(
                ("-fw_cfg", f"name=opt/io.systemd.credentials/{name},string={escape(value)}")
            )
    return pairs
