"""What is saved of a machine: a folder with its RAM, its devices' state and its disks.

::

    ram                  the guest's RAM; holes are zeros. Forks map it privately
    devices              QEMU's migration stream without the RAM
    disks/NAME.qcow2     a disk as it was; forks have an overlay on it
    efivars.fd           the UEFI variables; forks have a copy
    tpm/                 what the TPM held, of a cold one; otherwise the devices' state has it
    snapshot.json        all else, and of each file what shows that it is whole; written last

A *cold* snapshot has disks and variables only: its machine could not be saved while it ran, was shut
down, and a fork of it boots.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.errors import HarnessError, StateError
from harness.spec import MIB, Disk, Firmware, MachineSpec, Nic, Reach, Tpm
from harness.state.codec import shape, spec_from_json, to_json

MANIFEST: Final = "snapshot.json"
RAM: Final = "ram"
DEVICES: Final = "devices"
VARIABLES: Final = "efivars.fd"
TPM: Final = "tpm"

SMALL: Final = 16 * MIB
"""Bytes up to which a file's digest is compared before each use. A larger one has its size and its
time of change looked at: whoever writes to a file changes that."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What shows that a file is the one that was saved.

    Attributes:
        size: Bytes.
        changed: Its ``st_mtime_ns``.
        sha256: Its digest; empty for a large file.
    """

    size: int
    changed: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Seal:
        """Return the seal of a file as it is now.

        Raises:
            OSError: if it cannot be read.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, _digest(path, status.st_size))

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with a file, ``None`` if nothing is."""
        try:
            status = path.stat()
            if status.st_size != self.size:
                return f"{path} has {status.st_size} bytes, not {self.size}"
            if status.st_mtime_ns != self.changed:
                return f"{path} was changed after it had been saved"
            if self.sha256 and _digest(path, status.st_size) != self.sha256:
                return f"{path} has another digest"
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
        up: What it prints when it starts again.
    """

    count: int
    up: str


@dataclass(frozen=True, slots=True)
class Account:
    """Who logs in on the saved machine."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A saved machine.

    Attributes:
        folder: Where its files are.
        spec: The machine's.
        accel: ``kvm`` or ``tcg``; a fork has the same.
        cpu_model: QEMU's name of the CPU model; a fork has the same.
        qemu: The version of QEMU that saved it.
        saved: When, in seconds of the epoch.
        cold: Why it has no RAM; empty if it has.
        shell: The driver of console commands, if one was logged in.
        line: The last line on the console, which a prompt may be on.
        host_key: The SSH host key that was pinned, if SSH was used.
        account: Who logs in.
        private_key: The SSH key that logs in, in OpenSSH's format.
        public_key: Its line for ``authorized_keys``.
        files: The seals of its files, by path below the folder.
        bases: The seals of the files that its disks and its boot need, by path.
    """

    folder: Path
    spec: MachineSpec
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
    def ram(self) -> Path:
        """The RAM's file."""
        return self.folder / RAM

    @property
    def devices(self) -> Path:
        """The file of the devices' state."""
        return self.folder / DEVICES

    @property
    def variables(self) -> Path | None:
        """The UEFI variables; ``None`` if the machine has none."""
        path = self.folder / VARIABLES
        return path if path.exists() else None

    def fork_spec(self, name: str | None = None) -> MachineSpec:
        """Return the spec of a fork: its disks are overlays on the saved ones.

        Args:
            name: The fork's name; the saved machine's by default. MAC addresses follow it where no
                port of the host leads in: forks may meet there. An interface with one is alone with
                the host, which knows it by the address that its MAC address was leased.
        """
        nics = tuple(
            replace(nic, mac=self.spec.mac(nic)) if nic.forward else nic for nic in self.spec.nics
        )
        disks = []
        for disk in self.spec.disks:
            saved = self.folder / "disks" / f"{disk.name}.qcow2"
            of_saved = replace(disk, base=saved, format="qcow2", in_place=False)
            disks.append(of_saved if saved.exists() else disk)
        tpm = self.spec.tpm
        if tpm is not None:
            tpm = Tpm(self.folder / TPM if self.cold else None)
        return replace(
            self.spec, name=name or self.spec.name, disks=tuple(disks), nics=nics, tpm=tpm
        )

    def write(self) -> Snapshot:
        """Seal the files and write the manifest, down to the disk; return what was written.

        Raises:
            OSError: if it cannot be written.
        """
        files = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                # Some file systems keep no modes. The seals tell what was written to without them.
                with contextlib.suppress(PermissionError):
                    path.chmod(0o444)
                files.append((str(path.relative_to(self.folder)), Seal.of(path)))
        whole = replace(self, files=tuple(files))
        data = to_json(whole)
        del data["folder"]
        content = {"format": FORMAT, **data}
        # For its owner only: it has a private key.
        jsonfile.write(self.folder / MANIFEST, content, mode=0o600, durable=True)
        return whole

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Return the snapshot in a folder.

        Raises:
            StateError: if there is none that is whole.
        """
        path = folder / MANIFEST
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise StateError(f"{path} is of another version of Harness")
            data["spec"] = spec_from_json(data["spec"])
            for name, kind in (("shell", Shell), ("account", Account)):
                data[name] = None if data[name] is None else kind(**data[name])
            for name in ("files", "bases"):
                data[name] = tuple((str(file), Seal(**seal)) for file, seal in data[name])
            return cls(folder=folder, **data)
        except StateError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HarnessError) as error:
            raise StateError(f"{path} is missing or damaged: {error!r}") from error

    def faults(self) -> list[str]:
        """Return what is wrong with the files, a sentence each; it reads the small ones."""
        checks = [(self.folder / name, seal) for name, seal in self.files]
        checks += [(Path(name), seal) for name, seal in self.bases]
        return [fault for path, seal in checks if (fault := seal.fault(path)) is not None]


_NUMBER: Final = 2
"""Counted up where what is saved keeps its fields and means something else."""

_PARTS: Final = (Snapshot, Seal, Shell, Account, MachineSpec, Firmware, Disk, Nic, Reach, Tpm)

FORMAT: Final = f"{_NUMBER}.{shape(*_PARTS)}"
"""Of a snapshot's files; another one makes all states anew."""
