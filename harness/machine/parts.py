"""What a machine consists of: its spec from the first, its QEMU, console and SSH once it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.admission import Grant
from harness.console import Console
from harness.errors import HarnessError, UnknownNameError, UsageError
from harness.evidence.timeline import Timeline
from harness.keys import KeyPair
from harness.machine.fate import Fate
from harness.qemu import argv
from harness.qemu.accel import Accel
from harness.qemu.process import OwnedProcess
from harness.qemu.qmp import Qmp
from harness.qemu.tpm import TpmProcess
from harness.spec import MachineSpec
from harness.ssh import Ssh
from harness.state import save as saving
from harness.state.snapshot import Snapshot

if TYPE_CHECKING:
    from harness.profiles.base import Profile


class Parts:
    """The parts of a machine; made of what :class:`~harness.machine.Machine` is made of."""

    def __init__(
        self,
        spec: MachineSpec,
        *,
        accel: Callable[[str], Accel],
        key: KeyPair,
        evidence: Path,
        timeline: Timeline | None = None,
        origin: Snapshot | None = None,
        saveable: bool = False,
        admit: Callable[[MachineSpec, Timeline, bool], Grant] | None = None,
        services: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        self.spec = spec
        self._admit = admit
        self._grant: Grant | None = None
        self._services = dict(services or {})
        self.origin = origin
        self._saveable = saveable
        self._memory: saving.Memory | None = None
        self._unmapped = ""
        self._forks = 0
        self.evidence = evidence
        self.timeline = timeline or Timeline()
        self._key = key
        self._accel_of = accel
        self._os: Profile | None = None
        self._console: Console | None = None
        self._ssh: Ssh | None = None
        self._qmp: Qmp | None = None
        self._process: OwnedProcess | None = None
        self._tpm: TpmProcess | None = None
        self._ports: dict[int, tuple[str, int]] = {}
        self._allocations: argv.Allocations | None = None
        self._fate = Fate(spec.name)
        self.use_console_shell = not any(22 in nic.forward for nic in spec.nics)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.spec.name

    @property
    def console(self) -> Console:
        """The console."""
        if self._console is None:
            raise UsageError(f"machine {self.name} has not been started")
        return self._console

    @property
    def ssh(self) -> Ssh:
        """The SSH session; it connects at its first use."""
        if self._ssh is None:
            raise UsageError(
                f"machine {self.name} has no SSH: it has not been started, or no interface"
                " forwards port 22"
            )
        return self._ssh

    @property
    def qmp(self) -> Qmp:
        """QEMU's monitor."""
        if self._qmp is None:
            raise UsageError(f"machine {self.name} has not been started")
        return self._qmp

    @property
    def os(self) -> Profile:
        """The words of the image's OS family."""
        if self._os is None:
            raise UsageError(f"machine {self.name} was made without a profile")
        return self._os

    @os.setter
    def os(self, profile: Profile) -> None:
        self._os = profile
        self.log_in_as(profile.account.user)

    def log_in_as(self, user: str) -> None:
        """Let SSH log in as another user from the next command on; ``os.account`` says who else does."""
        if self._ssh is not None and self._ssh.user != user:
            self._ssh.disconnect()
            self._ssh.user = user

    @property
    def _hot(self) -> bool:
        """Whether it goes on from saved RAM; otherwise it boots."""
        return self.origin is not None and not self.origin.cold

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise UsageError(f"machine {self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether QEMU runs and the guest has not powered off."""
        return self._process is not None and self._process.running and not self._fate.stopped

    def port(self, guest_port: int) -> tuple[str, int]:
        """Return the host address that leads to a forwarded port of the guest.

        Raises:
            UsageError: if no interface of the spec forwards that port.
        """
        try:
            return self._ports[guest_port]
        except KeyError:
            raise UsageError(
                f"port {guest_port} of machine {self.name} is not forwarded",
                hint=f"name it in the spec: Nic(forward=(22, {guest_port}))",
            ) from None

    def disk(self, name: str) -> argv.DiskFile:
        """Return the file behind a disk, which outlives the machine until its test ends.

        Raises:
            UnknownNameError: if the machine has no such disk.
        """
        files = self._allocations.disks if self._allocations is not None else {}
        if name not in files:
            raise UnknownNameError("disk", name, files)
        return files[name]

    @property
    def tpm_state(self) -> Path:
        """The folder with what the TPM holds, for another machine once this one has ended.

        ``boot(tpm=Tpm(machine.tpm_state))`` has the same TPM, after a power cycle.

        Raises:
            UsageError: if the machine has no TPM.
        """
        state = self._allocations.tpm_state if self._allocations is not None else None
        if state is None:
            raise UsageError(
                f"machine {self.name} has no TPM, or has not been started",
                hint="boot it with tpm=True",
            )
        return state

    @property
    def failure(self) -> HarnessError | None:
        """What the machine failed with, or ``None``."""
        return self._fate.failure
