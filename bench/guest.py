"""The micro guest with its console on a plain wire, for readers that take turns at it.

QEMU's command line is the one that Harness builds, so that every side has the same machine. Only the
side whose turn it is reads the wire. Between turns the guest stands at a shell's prompt.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.labs import open_lab
from bench.raw import RawConsole
from harness import profiles
from harness.console import wire
from harness.console.wire import Wire
from harness.deadline import TCG_SCALE, Scale
from harness.host import accel
from harness.lab import Lab
from harness.qemu import argv, binary
from harness.qemu.process import OwnedProcess
from harness.spec import ConsoleDevice, Disk, MachineSpec, Nic
from harness.ssh.key import KeyPair

ARCH: Final = "x86_64"
USER: Final = "root"
PASSWORD: Final = "micro"
PROMPT: Final = r"micro:[^\r\n]*# "
"""The prompt of the guest's shell, as a regular expression."""

PAYLOAD: Final = "/tmp/payload"
"""The file in the guest that :meth:`Guest.login` writes the payload to."""

PORT: Final = "/dev/bench"
"""The guest's end of :attr:`Guest.port`: a link, because Linux chooses the number of the bus."""

SCALE: Final = Scale(TCG_SCALE)
"""The deadlines of guests under TCG."""


@functools.cache
def micro() -> Lab:
    """Return the lab whose micro image all bare guests of this process boot."""
    return open_lab("micro", Path(".harness/bench/runs"), arch=ARCH)


@functools.cache
def _files() -> Mapping[str, Path]:
    """Return the image's files by name, built if need be; they are lent until the process ends."""
    return micro().artifacts().files


def micro_spec(
    name: str,
    *,
    console: ConsoleDevice = ConsoleDevice.SERIAL,
    disks: tuple[Disk, ...] = (),
    nics: tuple[Nic, ...] = (),
    key: KeyPair | None = None,
) -> MachineSpec:
    """Return the spec of a micro guest.

    Args:
        name: The guest's name.
        console: The device of its console.
        disks: Further disks.
        nics: Network interfaces.
        key: The key that a credential lets in; none by default.
    """
    image = micro().image
    profile = profiles.of(image.definition)
    return profile.spec(
        image,
        _files(),
        name=name,
        disks=disks,
        nics=nics,
        credentials=profile.credentials(key.public) if key else None,
        console=console,
        cmdline="console=hvc0" if console is ConsoleDevice.VIRTIO else "",
    )


def command(spec: MachineSpec, console: Wire, qmp_fd: int | None, *disks: Path) -> list[str]:
    """Return QEMU's command line for a spec, as Harness builds it, but for a guest that runs at once.

    Args:
        spec: The machine.
        console: The guest's end of the console.
        qmp_fd: The guest's end of the monitor; ``None`` has none.
        disks: The file of each disk.
    """
    accelerator = micro().accelerator(ARCH)
    allocations = argv.Allocations(
        qemu=binary.find(ARCH).path,
        machine=binary.find(ARCH).machine,
        accel=accelerator.name,
        cpu_model=accel.cpu_model(accelerator, ARCH),
        disks={
            disk.name: argv.DiskFile(path, "raw")
            for disk, path in zip(spec.disks, disks, strict=True)
        },
        console_fds=(console.outgoing, console.incoming),
        qmp_fd=qmp_fd,
    )
    return [word for word in argv.build(spec, allocations) if word != "-S"]


@dataclass(frozen=True, slots=True)
class Payload:
    """A file of text lines for the guest to print.

    Attributes:
        path: The file on the host.
    """

    path: Path

    def digest(self, times: int, *, terminal: bool) -> tuple[int, str]:
        """Return length and SHA-256 of the output when the file is printed several times.

        Args:
            times: How often.
            terminal: Whether a terminal carries it, which turns each LF into CR LF.
        """
        data = self.path.read_bytes()
        if terminal:
            data = data.replace(b"\n", b"\r\n")
        digest = hashlib.sha256()
        for _ in range(times):
            digest.update(data)
        return len(data) * times, digest.hexdigest()


_LINES: Final = (
    "ACPI: Core revision {n:08x}",
    "pci 0000:00:{s:02x}.0: BAR 0 [mem 0x{n:08x}-0x{m:08x}]: assigned",
    "virtio_blk virtio{s}: [vda] {n} 512-byte logical blocks ({s}.{s} GB/{s}.{s} GiB)",
    "EXT4-fs (vda{s}): mounted filesystem {n:08x}-{m:08x} r/w with ordered data mode. Quota: none.",
    "systemd[1]: Started User Manager for UID {n}.",
    "systemd[1]: Reached target Basic System.",
    "systemd-networkd[{n}]: eth{s}: Gained IPv6LL",
    'audit: type=1400 audit({n}.{s}:{m}): apparmor="STATUS" operation="profile_load" name="n{s}"',
    "sshd[{n}]: Accepted publickey for root from 10.0.2.2 port {n} ssh2: ED25519 SHA256:{m:08x}",
    "kubelet[{n}]: I1121 {m} Kubernetes API server is NOT ready yet, trying again (attempt {s})",
    "random: crng init done",
    "clocksource: Switched to clocksource tsc",
)
"""Lines as in a guest's log: capitals, brackets and colons are where watchers begin to match."""


def payload(folder: Path, size: int) -> Payload:
    """Write a payload: a log of a guest in which each line differs; the same in each run.

    Args:
        folder: The folder that gets the file.
        size: Bytes; a multiple of 512, because the file is a disk of the guest.
    """
    source = random.Random(1)
    lines = bytearray()
    number = 0
    while len(lines) < size:
        number += 1
        n, m, s = source.getrandbits(32), source.getrandbits(32), source.randrange(32)
        text = source.choice(_LINES).format(n=n, m=m, s=s)
        lines += f"[{number / 1000:12.6f}] {text}\n".encode()
    del lines[size - 1 :]
    path = folder / f"payload-{size}"
    path.write_bytes(bytes(lines) + b"\n")
    return Payload(path)


class Guest:
    """A booted micro guest; a context manager.

    Args:
        folder: The folder that gets QEMU's standard error.
        name: The guest's name.
        console: The device of its console.
        load: A payload for the guest, or ``None``.

    Attributes:
        wire: The console.
        port: A virtio serial port: a stream out of the guest that is not a terminal. As on a serial
            line, QEMU makes the guest wait while its reader is behind (``virtserialport``). It carries
            about a hundred times as much as an emulated 16550.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        console: ConsoleDevice = ConsoleDevice.SERIAL,
        load: Payload | None = None,
    ) -> None:
        self.device = console
        self.payload = load
        self._stderr = folder / f"{name}.qemu.stderr"
        disks = (Disk("payload", base=load.path, readonly=True),) if load else ()
        self._spec = micro_spec(name, console=console, disks=disks)
        self._process: OwnedProcess | None = None
        self.wire, self._wire_there = wire.pair()
        port, self._port_there = socket.socketpair()
        self.port = over(port)

    def __enter__(self) -> Self:
        with self._wire_there as console, self._port_there as port:
            files = [self.payload.path] if self.payload else []
            self._process = OwnedProcess(
                [
                    *command(self._spec, console, None, *files),
                    *("-chardev", f"socket,id=port,fd={port.fileno()}"),
                    *("-device", "virtio-serial-pci,id=ports"),
                    *("-device", "virtserialport,bus=ports.0,nr=1,chardev=port,name=bench"),
                ],
                stderr=self._stderr,
                pass_fds=(console.incoming, console.outgoing, port.fileno()),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
        self.wire.close()
        self.port.close()

    def login(self) -> None:
        """Log in through the bare console and copy the payload into the guest's memory."""
        console = RawConsole(self.wire)
        console.login(USER, PASSWORD)
        shell = console.shell()
        _, status = shell.run(f"ln -s $(ls /dev/vport*p1) {PORT} && [ -c {PORT} ]")
        if status:
            raise RuntimeError("the guest has no virtio serial port")
        if self.payload is not None:
            _, status = shell.run(f"dd if=/dev/vda of={PAYLOAD} bs=64k 2>/dev/null")
            output, _ = shell.run(f"sha256sum < {PAYLOAD}")
            digest = hashlib.sha256(self.payload.path.read_bytes()).hexdigest()
            if status or output.split()[0].decode() != digest:
                raise RuntimeError("the payload in the guest differs from the file")
        shell.close()


def over(sock: socket.socket) -> Wire:
    """Return a wire that leads over a socket, which it takes."""
    descriptor = sock.detach()
    return Wire(descriptor, os.dup(descriptor))


def megabytes(size: float) -> float:
    """Return bytes as MB, of 1000 * 1000 bytes."""
    return size / 1e6
