"""A saved machine: a folder with its RAM, its device state and its disks.

::

    ram                  the guest's RAM; holes are zeros. Forks map it privately
    devices              QEMU's migration stream without the RAM; with it where there is no file ram
    disks/NAME.qcow2     a disk; each fork writes to an overlay on it
    efivars.fd           the UEFI variables; each fork has a copy
    tpm/                 the TPM's state, in a cold snapshot only; otherwise ``devices`` contains it
    snapshot.json        everything else, and the seals of all files; written last

A *cold* snapshot has disks and variables only. Its machine could not be saved while it ran and was shut
down, so a fork of it boots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from harness import jsonfile
from harness.errors import StateError
from harness.spec import MIB, Account, Disk, Firmware, GuestForward, MachineSpec, Nic, Tpm

if TYPE_CHECKING:
    from pydantic import ConfigDict

MANIFEST: Final = "snapshot.json"
RAM: Final = "ram"
DEVICES: Final = "devices"
VARIABLES: Final = "efivars.fd"
TPM: Final = "tpm"

SMALL: Final = 16 * MIB
"""Bytes up to which the checksum of a file is compared before each use. Of a larger file, size and time
of change are compared: every write changes that time."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The marks of a saved file, by which a later change is detected.

    Attributes:
        size: Bytes.
        changed: Its ``st_mtime_ns``.
        sha256: Its SHA-256, in hexadecimal; empty for a file larger than :data:`SMALL`.
    """

    size: int
    changed: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Seal:
        """Return the seal of a file in its present condition.

        Raises:
            OSError: The file cannot be read.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, _digest(path, status.st_size))

    def fault(self, path: Path) -> str | None:
        """Return how a file differs from its seal; ``None`` if it does not."""
        try:
            status = path.stat()
            if status.st_size != self.size:
                return f"{path} has {status.st_size} bytes, not {self.size}"
            if status.st_mtime_ns != self.changed:
                return f"{path} was changed after it had been saved"
            if self.sha256 and _digest(path, status.st_size) != self.sha256:
                return f"{path} has another checksum"
        except OSError as error:
            return f"{path}: {error.strerror}"
        return None


def _digest(path: Path, size: int) -> str:
    if size > SMALL:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Shell:
    """The driver of console commands that runs in the saved guest.

    Attributes:
        count: The number of its last command.
        up: The line that it prints when it starts again.
    """

    count: int
    up: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A saved machine.

    Attributes:
        folder: The folder of its files.
        spec: The spec of the machine.
        machine: The machine type with its version; a fork has the same, unless it boots.
        accel: ``kvm`` or ``tcg``; a fork uses the same.
        cpu_model: QEMU's name of the CPU model; a fork has the same.
        qemu: The version of QEMU that saved it.
        saved: The time when it was saved, in seconds of the epoch.
        cold: Why it has no RAM; empty if it has.
        shell: The driver of console commands, if the console was logged in.
        line: The last line on the console; it may be a prompt.
        host_key: The pinned SSH host key, if SSH was used.
        account: The account that logs in.
        private_key: The SSH key that logs in, in OpenSSH's format.
        public_key: The line of the key for ``authorized_keys``.
        files: The seals of its files, by path below the folder.
        bases: The seals of the files outside the folder that its disks and its boot need, by path.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    folder: Path
    spec: MachineSpec
    machine: str
    accel: str
    cpu_model: str
    qemu: str
    saved: float
    cold: str = ""
    shell: Shell | None = None
    line: str = ""
    host_key: str | None = None
    account: Account | None = None
    private_key: str = ""
    public_key: str = ""
    files: tuple[tuple[str, Seal], ...] = ()
    bases: tuple[tuple[str, Seal], ...] = ()

    @property
    def machines(self) -> tuple[str, ...]:
        """The names of the machines of a group; a snapshot is none."""
        return ()

    @property
    def ram(self) -> Path:
        """The file of the RAM."""
        return self.folder / RAM

    @property
    def devices(self) -> Path:
        """The file of the device state."""
        return self.folder / DEVICES

    @property
    def streamed(self) -> bool:
        """Whether the RAM is in the file of the device state, as in a bundle: no fork can map it."""
        return not self.cold and not self.ram.exists()

    @property
    def variables(self) -> Path | None:
        """The file of the UEFI variables; ``None`` if the machine has none."""
        path = self.folder / VARIABLES
        return path if path.exists() else None

    def fork_spec(self, name: str | None = None) -> MachineSpec:
        """Return the spec of a fork: its disks are overlays on the saved ones.

        Args:
            name: The name of the fork; by default that of the saved machine. Forks may meet on an
                interface without forwarded ports, so its MAC address follows the name. An interface
                with forwarded ports has a network of its own, where QEMU forwards to the address that
                was leased to the saved MAC address; so it keeps that one.
        """
        nics = tuple(
            replace(nic, mac=self.spec.mac(nic)) if nic.forward else nic for nic in self.spec.nics
        )
        disks = []
        for disk in self.spec.disks:
            saved = self.folder / "disks" / f"{disk.name}.qcow2"
            overlay = replace(disk, base=saved, format="qcow2", in_place=False)
            disks.append(overlay if saved.exists() else disk)
        tpm = self.spec.tpm
        if tpm is not None:
            tpm = Tpm(self.folder / TPM if self.cold else None)
        return replace(
            self.spec, name=name or self.spec.name, disks=tuple(disks), nics=nics, tpm=tpm
        )

    def write(self) -> Snapshot:
        """Seal the files and write the manifest, synced to the disk; return the sealed snapshot.

        Raises:
            OSError: The manifest cannot be written.
        """
        files = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                # Some file systems have no modes; there, the seals alone detect a change.
                with contextlib.suppress(PermissionError):
                    path.chmod(0o444)
                files.append((str(path.relative_to(self.folder)), Seal.of(path)))
        whole = replace(self, files=tuple(files))
        # Only the owner may read it: it contains a private key.
        jsonfile.save(self.folder / MANIFEST, whole, format=FORMAT, omit=("folder",), mode=0o600)
        return whole

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Return the snapshot in a folder.

        Raises:
            StateError: The manifest is missing, damaged, or of another version of Harness.
        """
        path = folder / MANIFEST
        try:
            return jsonfile.load(path, cls, format=FORMAT, folder=str(folder))
        except jsonfile.OtherFormatError as error:
            raise StateError(f"{path} is of another version of Harness") from error
        except (OSError, ValueError) as error:
            raise StateError(f"{path} is missing or damaged: {error}") from error

    def faults(self) -> list[str]:
        """Return how the files differ from their seals, a sentence each; this reads the small files."""
        checks = [(self.folder / name, seal) for name, seal in self.files]
        checks += [(Path(name), seal) for name, seal in self.bases]
        return [fault for path, seal in checks if (fault := seal.fault(path)) is not None]


def shape(*kinds: type) -> str:
    """Return a digest of the names of dataclasses' fields, which are the names in their JSON."""
    names = [(kind.__name__, [field.name for field in dataclasses.fields(kind)]) for kind in kinds]
    return hashlib.sha256(repr(names).encode()).hexdigest()[:8]


_NUMBER: Final = 2
"""Raised when a field keeps its name and changes its meaning."""

_PARTS: Final = (
    Snapshot,
    Seal,
    Shell,
    Account,
    MachineSpec,
    Firmware,
    Disk,
    Nic,
    GuestForward,
    Tpm,
)

FORMAT: Final = f"{_NUMBER}.{shape(*_PARTS)}"
"""The format of a snapshot; every state is built again when it changes."""
