"""The micro guest with its console on a plain socket, for readers that take turns at it.

QEMU's command line is Harness' own, so that every side has the same machine; nobody reads the
socket but the side whose turn it is. Between turns the guest stands at a shell's prompt.
"""

from __future__ import annotations

import functools
import hashlib
import random
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.raw import RawConsole
from harness import deadline, paths, profiles
from harness.catalog import Selection, load
from harness.keys import KeyPair
from harness.machine import Machine
from harness.profiles.base import Profile
from harness.qemu import accel, argv, binary
from harness.qemu.process import OwnedProcess
from harness.spec import ConsoleDevice, Disk, MachineSpec, Nic
from harness.store import Store

ARCH: Final = "x86_64"
USER: Final = "root"
PASSWORD: Final = "micro"
PROMPT: Final = r"micro:[^\r\n]*# "
"""The prompt of the guest's shell, for who matches it."""

PAYLOAD: Final = "/tmp/payload"
"""Where :meth:`Guest.login` puts the payload in the guest."""

PORT: Final = "/dev/bench"
"""The guest's end of :attr:`Guest.port`: a link, for Linux numbers the buses as it finds them."""

ACCELERATOR: Final = "tcg"
"""The budgets are for TCG: it is what every host has."""


@dataclass(frozen=True, slots=True)
class Micro:
    """The micro image, ready to boot.

    Attributes:
        selection: Its entry of the catalogue.
        files: Its artifacts by name.
        profile: Its profile.
        accel: The accelerator.
    """

    selection: Selection
    files: dict[str, Path]
    profile: type[Profile]
    accel: accel.Accel

    def spec(
        self,
        name: str,
        *,
        console: ConsoleDevice = ConsoleDevice.SERIAL,
        disks: tuple[Disk, ...] = (),
        nics: tuple[Nic, ...] = (),
        key: KeyPair | None = None,
    ) -> MachineSpec:
        """Return the spec of a guest whose console is the given device."""
        return self.profile.spec(
            self.selection,
            self.files,
            name=name,
            disks=disks,
            nics=nics,
            credentials=self.profile.credentials(key.public) if key else None,
            console=console,
            cmdline="console=hvc0" if console is ConsoleDevice.VIRTIO else "",
        )

    def machine(self, name: str, folder: Path, key: KeyPair) -> Machine:
        """Return a machine as a test would have it: SSH, monitor, evidence. It is not started."""
        spec = self.spec(name, nics=(Nic(),), key=key)
        machine = Machine(spec, accel=lambda _: self.accel, key=key, evidence=folder)
        machine.os = self.profile(machine, self.selection)
        return machine


@functools.cache
def micro() -> Micro:
    """Return the micro image, built or fetched if it has to be; deadlines are scaled for TCG."""
    selection = load(paths.images_dir(), known_profiles=profiles.names()).resolve("micro", ARCH)
    files = Store(paths.cache_dir()).artifacts(selection, progress=print).files
    qemu = binary.find(ARCH)
    found = accel.probe(ACCELERATOR, ARCH, qemu=qemu.path, cache_dir=paths.cache_dir())
    deadline.set_scale(deadline.TCG_SCALE)
    return Micro(selection, dict(files), profiles.of(selection.image), found)


def command(spec: MachineSpec, console_fd: int, qmp_fd: int | None, *disks: Path) -> list[str]:
    """Return QEMU's command line for a spec, as Harness makes it, that starts running at once."""
    image = micro()
    given = argv.Allocations(
        qemu=binary.find(ARCH).path,
        accel=image.accel.name,
        cpu_model=accel.cpu_model(image.accel, ARCH),
        disks={
            disk.name: argv.DiskFile(path, "raw")
            for disk, path in zip(spec.disks, disks, strict=True)
        },
        console_fd=console_fd,
        qmp_fd=qmp_fd,
    )
    return [word for word in argv.build(spec, given) if word != "-S"]


@dataclass(frozen=True, slots=True)
class Payload:
    """A file of text lines for the guest to print.

    Attributes:
        path: The file on the host.
    """

    path: Path

    def digest(self, times: int, *, terminal: bool) -> tuple[int, str]:
        """Return length and SHA-256 of what comes out when it is printed so often.

        Args:
            times: How often.
            terminal: Whether it goes through a terminal, which makes each LF a CR LF.
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
"""Lines as a guest's log has them: capitals, brackets and colons are what watchers begin with."""


def payload(folder: Path, size: int) -> Payload:
    """Write a payload: a log of a guest, each line different; the same for each run.

    Args:
        folder: Where the file goes.
        size: Bytes; a multiple of 512, the file is a disk of the guest.
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
        folder: Where QEMU's words go.
        name: The guest's name.
        console: The device of its console.
        load: A payload to have in the guest, or ``None``.

    Attributes:
        socket: The console.
        port: A virtio serial port: a stream out of the guest that is not a terminal. QEMU makes
            the guest wait while its reader is behind (``virtserialport``), as on a serial line,
            and it carries some hundred times what an emulated 16550 does.
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
        self._words = folder / f"{name}.qemu.stderr"
        disks = (Disk("payload", base=load.path, readonly=True),) if load else ()
        self._spec = micro().spec(name, console=console, disks=disks)
        self._process: OwnedProcess | None = None
        self.socket, self._socket_there = socket.socketpair()
        self.port, self._port_there = socket.socketpair()

    def __enter__(self) -> Self:
        with self._socket_there as console, self._port_there as port:
            files = [self.payload.path] if self.payload else []
            self._process = OwnedProcess(
                [
                    *command(self._spec, console.fileno(), None, *files),
                    *("-chardev", f"socket,id=port,fd={port.fileno()}"),
                    *("-device", "virtio-serial-pci,id=ports"),
                    *("-device", "virtserialport,bus=ports.0,nr=1,chardev=port,name=bench"),
                ],
                stderr=self._words,
                pass_fds=(console.fileno(), port.fileno()),
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
        self.socket.close()
        self.port.close()

    def login(self) -> None:
        """Log in, by hand, and bring the payload into the guest's memory."""
        console = RawConsole(self.socket.fileno())
        console.login(USER, PASSWORD)
        shell = console.shell()
        _, status = shell.run(f"ln -s $(ls /dev/vport*p1) {PORT} && [ -c {PORT} ]")
        if status:
            raise RuntimeError("the guest has no virtio serial port")
        if self.payload is not None:
            _, status = shell.run(f"dd if=/dev/vda of={PAYLOAD} bs=64k 2>/dev/null")
            told, _ = shell.run(f"sha256sum < {PAYLOAD}")
            want = hashlib.sha256(self.payload.path.read_bytes()).hexdigest()
            if status or told.split()[0].decode() != want:
                raise RuntimeError("the payload did not come into the guest whole")
        shell.close()


def megabytes(size: float) -> float:
    """Return bytes as MB, of 1000 * 1000 bytes."""
    return size / 1e6
