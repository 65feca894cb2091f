"""One virtual machine: the words that scenarios use.

A machine owns its QEMU, console, monitor, SSH session and disks, and leaves evidence of each. It is
a context manager; what ends it (the guest's panic, QEMU's death) ends every pending wait at once,
whatever the wait is on.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

from harness.admission import Grant
from harness.console import Console, Expected
from harness.crash.recording import Recording
from harness.deadline import Deadline, after, of
from harness.errors import (
    CommandError,
    ConnectionLostError,
    GuestError,
    GuestStoppedError,
    HarnessError,
    QemuExitedError,
    QemuStartError,
    QmpError,
    TpmError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
)
from harness.evidence.timeline import Timeline
from harness.keys import KeyPair
from harness.qemu import argv, binary, firmware
from harness.qemu import disk as disks
from harness.qemu import filter as filters
from harness.qemu.accel import Accel, cpu_model
from harness.qemu.filter import Filters
from harness.qemu.process import OwnedProcess
from harness.qemu.qmp import Event, Qmp
from harness.qemu.script import reproduce
from harness.qemu.tpm import TpmProcess
from harness.spec import MachineSpec
from harness.ssh import Ssh, SshResult
from harness.state import filesystem
from harness.state import restore as restoring
from harness.state import save as saving
from harness.state import snapshot as snapshots
from harness.state.snapshot import Snapshot

if TYPE_CHECKING:
    from harness.profiles.base import Profile

_RECORD: Final = "record"
_FAULT: Final = "fault"

_FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest came to, whichever way it went in.

    Attributes:
        output: What it printed on standard output; errors as well when it ran on the console.
        status: Its exit status.
    """

    output: str
    status: int


class Machine:
    """A virtual machine made from a spec.

    Args:
        spec: What it is.
        accel: Gives the accelerator for an arch.
        key: The run's SSH key.
        evidence: The folder for its evidence; made if absent, disks of the run below ``disks/``.
        timeline: Where its steps go.
        origin: The snapshot that it goes on from; it boots without one.
        saveable: Whether its RAM is kept so that :meth:`save` and :meth:`fork` work.
        admit: Asks the host to carry a spec, when the machine starts; told whether it shares the RAM of
            what it goes on from. See :meth:`harness.turns.Turns.take`.
        services: Where the services that the spec's interfaces reach listen: host and port by name.
    """

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
        self._filters_made: Filters | None = None
        self._process: OwnedProcess | None = None
        self._tpm: TpmProcess | None = None
        self._ports: dict[int, tuple[str, int]] = {}
        self._allocations: argv.Allocations | None = None
        self._lock = threading.Lock()
        self._failure: HarnessError | None = None
        self._stopped = False
        self._stop_expected = False
        self.use_console_shell = not any(22 in nic.forward for nic in spec.nics)

    # --- parts --------------------------------------------------------------------------------

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
    def _filters(self) -> Filters:
        if self._filters_made is None:
            self._filters_made = Filters(self.qmp)
        return self._filters_made

    @property
    def os(self) -> Profile:
        """The words of the image's OS family."""
        if self._os is None:
            raise UsageError(f"machine {self.name} was made without a profile")
        return self._os

    @os.setter
    def os(self, profile: Profile) -> None:
        self._os = profile
        if self._ssh is not None:
            self._ssh.user = profile.account.user

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
        return self._process is not None and self._process.running and not self._stopped

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

    def writes(self, name: str) -> int:
        """Return how many writes and discards the guest has sent to a disk since power on.

        QEMU counts them (``query-blockstats`` in its QMP reference): a disk whose number stays has
        kept every byte.

        Raises:
            UnknownNameError: if the machine has no such disk.
        """
        self.disk(name)
        stats = self._disk_stats(name)
        return int(stats["wr_operations"]) + int(stats["unmap_operations"])

    def written(self, name: str) -> list[range]:
        """Return the bytes of a disk that the guest has written or discarded since the machine started.

        By whole clusters of 64 KiB, on a disk that began with something: of a blank one, all that
        was ever written. What the guest still holds back is not in it: let it ``sync`` before.

        Raises:
            UnknownNameError: if the machine has no such disk.
            UsageError: if the disk is not an overlay: it is written in place, or not at all.
        """
        file = self.disk(name)
        if file.format != "qcow2":
            raise UsageError(f"disk {name} has no overlay that shows what was written to it")
        # QEMU writes what it caches of the disk's file when it stops the guest.
        self.qmp.execute("stop")
        try:
            return disks.written(file)
        finally:
            self.qmp.execute("cont")

    def disk_errors(self, name: str) -> int:
        """Return how many requests of the guest a disk has failed since power on.

        Raises:
            UnknownNameError: if the machine has no such disk.
        """
        stats = self._disk_stats(name)
        return sum(
            int(stats[f"failed_{kind}_operations"]) for kind in ("rd", "wr", "unmap", "flush")
        )

    def _disk_stats(self, name: str) -> dict[str, Any]:
        self.disk(name)
        for entry in self.qmp.execute("query-blockstats"):
            # By the device: the node that it uses may be a filter's.
            if entry.get("qdev", "").startswith(f"/machine/peripheral/{name}/"):
                return cast("dict[str, Any]", entry["stats"])
        raise QmpError(f"QEMU tells no statistics of disk {name}")

    # --- disks that are recorded, or fail -----------------------------------------------------

    @contextlib.contextmanager
    def recording(self, name: str, folder: Path | None = None) -> Iterator[Recording]:
        """Record every write, flush and discard of a disk while the block runs.

        The guest stands still for a moment at the beginning, while the disk as it is then is kept.
        A machine that ended in the block is fine.

        Args:
            name: The disk.
            folder: A new folder for the recording; in the evidence by default.

        Raises:
            UnknownNameError: if the machine has no such disk.
            UsageError: if it is recorded already, or has a fault: heal it first.
            QmpError: if QEMU refuses.
            DiskFullError: no space for the recording.
        """
        file = self.disk(name)
        spec = next(disk for disk in self.spec.disks if disk.name == name)
        if spec.readonly or file.format != "qcow2":
            raise UsageError(
                f"disk {name} cannot be recorded: it is written in place or not at all"
            )
        if self._filters.has(name, _FAULT):
            raise UsageError(f"disk {name} cannot be recorded while it fails: heal it first")
        made = Recording(folder or self.evidence / f"recording-{name}", name, spec.guest_serial)
        with self.timeline.step("record", machine=self.name, disk=name):
            # QEMU writes what it caches of the disk's file when it stops the guest.
            self.qmp.execute("stop")
            try:
                made.folder.mkdir(parents=True)
                with file.path.open("rb") as source, made.base.open("xb") as target:
                    saving.copy_data(source.fileno(), target.fileno())
                made.path.touch()
                made.save()
                options = filters.recorder(self._filters.top(name), made.path)
                self._filters.insert(name, _RECORD, options)
            except OSError as error:
                raise disks.disk_full(error, made.folder) from error
            finally:
                self.qmp.execute("cont")
        try:
            yield made
        finally:
            if self._process is not None and self._process.running:
                self._filters.remove(name, _RECORD)
            made.mark("end")

    def disk_fault(
        self,
        name: str,
        *,
        on: Sequence[str] = filters.REQUESTS,
        sectors: range | None = None,
        after: int = 0,
        once: bool = False,
    ) -> None:
        """Let a disk fail from now on: the guest sees I/O errors. One fault at a time.

        A disk that has no space left is ``on=filters.WRITES``: over virtio-blk a guest is told of
        every failure in the same way (virtio 1.2, section 5.2.6: ``VIRTIO_BLK_S_IOERR``).

        Args:
            name: The disk.
            on: Which requests: ``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``.
            sectors: Only requests that touch one of these sectors of 512 bytes.
            after: How many writes are done before it begins.
            once: Whether only the first request fails.

        Raises:
            UnknownNameError: if the machine has no such disk.
            UsageError: if it fails already, or the fault is none.
        """
        self.disk(name)
        fault = filters.Fault(tuple(on), sectors, after, once)
        with self.timeline.step("disk fault", machine=self.name, disk=name, fault=str(fault)):
            self._filters.insert(name, _FAULT, filters.faulty(self._filters.top(name), fault))

    def heal_disk(self, name: str) -> None:
        """Let a disk work again.

        Raises:
            UsageError: if it does not fail.
        """
        with self.timeline.step("heal disk", machine=self.name, disk=name):
            self._filters.remove(name, _FAULT)

    # --- start and stop -----------------------------------------------------------------------

    def __enter__(self) -> Machine:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start QEMU and the guest; the console is drained from the first byte.

        Raises:
            QemuMissingError, QemuTooOldError, FirmwareMissingError: the host lacks something.
            QemuStartError: QEMU refused its arguments or died; carries its stderr.
            DiskFullError: no space for the machine's disks.
        """
        if self._process is not None:
            raise UsageError(f"machine {self.name} has been started before")
        if self.origin is not None and self._hot:
            self._unmapped = filesystem.unmapped(self.origin.ram)
        if self._admit is not None:
            shares = self._hot and not self._saveable and not self._unmapped
            self._grant = self._admit(self.spec, self.timeline, shares)
        with (
            self.timeline.step("start", machine=self.name) as step,
            contextlib.ExitStack() as undo,
        ):
            undo.callback(self.stop)
            if self._unmapped:
                step.data["ram"] = f"a copy: the saved file cannot be mapped: {self._unmapped}"
            self._start()
            self._differ()
            undo.pop_all()

    def _start(self) -> None:
        spec = self.spec
        for each in (each for nic in spec.nics for each in nic.reach):
            if each.name not in self._services:
                raise UsageError(
                    f"machine {self.name} reaches service {each.name}, and nobody has started it",
                    hint=f"boot(services=[...]) or fork_of(state, services=[...]) with {each.name}",
                )
        qemu = binary.find(spec.arch)
        accel = self._accel_of(spec.arch)
        flash = firmware.find(spec.arch, spec.firmware.kind)
        model = spec.cpu_model or cpu_model(accel, spec.arch)
        if self.origin is not None:
            restoring.check(self.origin, accel.name, model)
            if flash is not None and self.origin.variables is not None:
                flash = replace(flash, variables=self.origin.variables)
        folder = self.evidence / "disks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            variables = None
            if flash is not None:
                variables = folder / "efivars.fd"
                if not variables.exists():
                    shutil.copyfile(flash.variables, variables)
        except OSError as error:
            raise disks.disk_full(error, folder) from error
        files = {disk.name: disks.create(disk, folder) for disk in spec.disks}
        self._start_tpm(folder)
        console_here, console_there = socket.socketpair()
        qmp_here, qmp_there = socket.socketpair()
        try:
            given = argv.Allocations(
                qemu=qemu.path,
                accel=accel.name,
                cpu_model=model,
                disks=files,
                firmware=flash,
                variables=variables,
                console_fd=console_there.fileno(),
                qmp_fd=qmp_there.fileno(),
                services=self._services,
                tpm_state=self._tpm.state if self._tpm is not None else None,
                tpm_fd=self._tpm.fd if self._tpm is not None else None,
            )
            given = self._allocate_memory(given)
            self._allocations = given
            reproduce(spec, given, folder, self.evidence / "qemu.sh")
            self._console = Console(
                console_here,
                log=self.evidence / "serial.log",
                cast=self.evidence / "serial.cast",
                name=self.name,
                on_eof=self._how_the_console_ended,
                on_failure=self._on_console_failure,
            )
            self._qmp = Qmp(
                qmp_here, name=self.name, log=self.evidence / "qmp.jsonl", on_event=self._on_event
            )
            self._process = OwnedProcess(
                argv.build(spec, given),
                stderr=self.evidence / "qemu.stderr",
                pass_fds=(
                    console_there.fileno(),
                    qmp_there.fileno(),
                    *([self._memory.fd] if self._memory is not None else []),
                    *([given.tpm_fd] if given.tpm_fd is not None else []),
                    # Should this process be killed, the grant ends with QEMU.
                    *([self._grant.fileno()] if self._grant is not None else []),
                ),
                on_exit=self._on_exit,
            )
            if self.origin is not None and self._hot:
                # What the saved machine's last line says counts as said: a prompt may be on it.
                console_there.sendall(self.origin.line.encode())
        finally:
            console_there.close()
            qmp_there.close()
            if self._tpm is not None:
                self._tpm.hand_over()
        self._attach()

    def _start_tpm(self, folder: Path) -> None:
        if self.spec.tpm is not None:
            self._tpm = TpmProcess(
                self.spec.tpm,
                folder / "tpm",
                stderr=self.evidence / "swtpm.stderr",
                on_exit=self._on_tpm_exit,
            )

    def _allocate_memory(self, given: argv.Allocations) -> argv.Allocations:
        """Return the allocations with RAM that can be saved, or that of the origin."""
        origin = self.origin
        if self._saveable or self._unmapped:
            content = origin.ram if origin is not None and self._hot else None
            memory = saving.Memory.create(self.name, self.spec.memory, content)
            self._memory = memory
            ram = argv.Ram(Path(f"/proc/self/fd/{memory.fd}"), private=False, saved=content)
            given = replace(given, ram=ram)
        if origin is None:
            return given
        (self.evidence / "origin.json").write_text(
            json.dumps({"folder": str(origin.folder), "saved": origin.saved, "cold": origin.cold})
        )
        return restoring.allocate(given, origin, self._memory)

    def _attach(self) -> None:
        assert self._process is not None
        limit = after(30)
        try:
            self.qmp.connect(limit)
            told = self.qmp.human("info usernet") if self.spec.nics else ""
            self._ports = {
                int(guest): (host, int(port)) for host, port, guest in _FORWARD.findall(told)
            }
            if 22 in self._ports:
                user = self._os.account.user if self._os is not None else "root"
                self._ssh = Ssh(
                    self._ports[22],
                    user=user,
                    key=self._key,
                    log=self.evidence / "ssh.jsonl",
                    guest=lambda: (self.console.last_output(), self.console.silent_for()),
                )
            origin = self.origin
            if origin is not None and self._hot:
                restoring.restore(self.qmp, origin.devices, limit)
                if self._ssh is not None:
                    self._ssh.host_key = origin.host_key
                if origin.shell is not None:
                    self.console.adopt_shell(origin.shell.count, origin.shell.up)
            self.qmp.execute("cont")
        except (QmpError, QemuExitedError) as error:
            # A monitor that hangs up means that QEMU is ending: its own words say why.
            self._process.wait(after(5, scaled=False))
            raise QemuStartError(
                f"QEMU did not start ({self._process.how_ended()})",
                evidence=self._process.last_words() or str(self._process.stderr),
                hint=f"run {self.evidence / 'qemu.sh'} by hand",
            ) from error

    # --- save and fork ------------------------------------------------------------------------

    def save(self, folder: Path, *, final: bool = False, inside: Path | None = None) -> Snapshot:
        """Save the machine as it is now: RAM, devices, disks.

        It stands still meanwhile, then runs on, unless ``final``.

        Args:
            folder: A new folder.
            final: End the machine; its disks are moved then, not copied.
            inside: A folder below which bases of disks stay where they are; others are copied.

        Raises:
            UsageError: if the machine was not started with ``saveable``.
            SnapshotError: if a device forbids it; names it.
            DiskFullError, StoreError: if the folder cannot be written.
        """
        given, memory = self._allocations, self._memory
        if given is None or memory is None or not self._saveable:
            raise UsageError(
                f"machine {self.name} cannot be saved: it was not started to be",
                hint="start it with saveable=True",
            )
        if self._ssh is not None:
            self._ssh.disconnect()
        with self.timeline.step("save", machine=self.name, folder=str(folder)):
            draft = self._draft(folder, given)
            try:
                with saving.hot(self.qmp, draft, given, memory):
                    if final:
                        self.stop()
                return saving.finish(draft, given, inside=inside or folder, move=final)
            finally:
                if self.running:
                    self.qmp.execute("cont")

    def save_disks(self, folder: Path, why: str, *, inside: Path | None = None) -> Snapshot:
        """Shut the machine down and save its disks only; a fork of that boots.

        Args:
            folder: A new folder.
            why: Why it is not saved as it runs.
            inside: As :meth:`save` takes it.
        """
        given = self._allocations
        if given is None:
            raise UsageError(f"machine {self.name} has not been started")
        saving.check_disks(self.spec)
        draft = replace(self._draft(folder, given), cold=why)
        if self.running:
            self.shutdown()
        with self.timeline.step("save the disks", machine=self.name, folder=str(folder)):
            return saving.finish(draft, given, inside=inside or folder, move=True)

    def _draft(self, folder: Path, given: argv.Allocations) -> Snapshot:
        shell = self.console.export_shell()
        last = "" if shell else self.console.last_output(1)
        account = self._os.account if self._os is not None else None
        return Snapshot(
            folder=folder,
            spec=self.spec,
            accel=given.accel,
            cpu_model=given.cpu_model,
            qemu=binary.find(self.spec.arch).version,
            saved=time.time(),
            shell=snapshots.Shell(*shell) if shell else None,
            line=last,
            host_key=self._ssh.host_key if self._ssh is not None else None,
            account=snapshots.Account(account.user, account.password) if account else None,
            private_key=self._key.private,
            public_key=self._key.public,
        )

    def fork(self, name: str | None = None) -> Machine:
        """Return a new machine that goes on from here, as this one does; not started yet.

        ``with machine.fork() as other: ...``

        Args:
            name: Its name; this one's and a number by default.

        Raises:
            UsageError, SnapshotError, StoreError: as :meth:`save`.
        """
        self._forks += 1
        name = name or f"{self.name}-fork{self._forks}"
        saved = self.save(self.evidence / "disks" / f"saved-{self._forks}")
        fork = Machine(
            saved.fork_spec(name),
            accel=self._accel_of,
            key=self._key,
            evidence=self.evidence.parent / name,
            timeline=self.timeline,
            origin=saved,
            admit=self._admit,
            services=self._services,
        )
        if self._os is not None:
            fork.os = type(self._os)(fork, self._os.selection, self._os.account)
        return fork

    def _differ(self) -> None:
        """Make a fork that has just begun to run differ from its siblings where it must."""
        origin = self.origin
        if origin is None or origin.cold:
            return
        with self.timeline.step(
            "fork", machine=self.name, origin=str(origin.folder), saved=origin.saved
        ) as step:
            command = restoring.difference(origin.spec, self.spec)
            if self._os is not None:
                command = self._os.as_root(command)
            if self.console.logged_in:
                status = self.console.run(command).status
            elif origin.host_key is not None:
                status = self.ssh.run(command).status
            else:
                # Nobody can tell the guest: it is as if it had slept.
                step.data["clock"] = "that of the origin: nobody is logged in"
                return
            if status:
                step.data["clock"] = f"not set: status {status}"

    def stop(self) -> None:
        """End QEMU at once, if it runs, and release everything but the evidence."""
        with self._lock:
            self._stop_expected = True
        if self._process is not None:
            self._process.kill()
        if self._tpm is not None:
            self._tpm.close()
        if self._ssh is not None:
            self._ssh.close()
        if self._qmp is not None:
            self._qmp.close()
        if self._console is not None:
            self._console.close()
        if self._memory is not None:
            self._memory.close()
        if self._grant is not None:
            self._grant.release()

    # --- what happens to it -------------------------------------------------------------------

    def _on_exit(self, status: int) -> None:
        del status
        assert self._process is not None
        with self._lock:
            expected = self._stop_expected
            self._stopped = True
        how = self._process.how_ended()
        if expected:
            self._fail(GuestStoppedError(f"machine {self.name} was stopped"))
        else:
            self._fail(
                QemuExitedError(
                    f"QEMU of machine {self.name} ended ({how}) under the running guest",
                    evidence=self._process.last_words() or str(self._process.stderr),
                    hint="out of memory on the host? see 'harness doctor' and the kernel's log",
                )
            )

    def _on_tpm_exit(self, status: int) -> None:
        # It ends well when QEMU closes the connection.
        if status == 0 or self._stop_expected:
            return
        self._fail(
            TpmError(
                f"the TPM of machine {self.name} ended under the running guest",
                evidence=str(self.evidence / "swtpm.stderr"),
            )
        )

    def _how_the_console_ended(self) -> BaseException:
        """Say why QEMU closed the console; called in the console's own thread."""
        process = self._process
        if process is not None:
            process.wait(after(10, scaled=False))
        return self._failure or QemuExitedError(f"QEMU of machine {self.name} closed the console")

    def _on_console_failure(self, error: BaseException) -> None:
        if isinstance(error, HarnessError):
            self._fail(error)

    def _on_event(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            with self._lock:
                self._stopped = True
                expected = self._stop_expected
            reason = event.data.get("reason", "unknown")
            if not expected:
                self._fail(
                    GuestStoppedError(
                        f"machine {self.name} powered off ({reason}) and nobody had asked it to",
                        evidence=self.console.last_output(),
                        hint="use machine.wait_for_shutdown() where the scenario expects it",
                    )
                )
        elif event.name == "RESET":
            self.console.forget_login()

    def _fail(self, error: HarnessError) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        for part in (self._console, self._ssh, self._qmp):
            if part is not None:
                part.fail(error)

    @property
    def failure(self) -> HarnessError | None:
        """What the machine failed with, or ``None``."""
        return self._failure

    def wait_for_shutdown(self, deadline: Deadline | float | None = None) -> None:
        """Wait until the guest powers off by itself; one that has already is fine.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: at the deadline.
            GuestError: if the guest fails first.
        """
        limit = of(deadline, 60)
        with self._lock:
            self._stop_expected = True
        with self.timeline.step("wait for power-off", machine=self.name):
            self._await("the guest to power off", ("SHUTDOWN",), limit, since=0)
        self.stop()

    def wait_for_reset(self, deadline: Deadline | float | None = None, *, since: int = 0) -> None:
        """Wait until the guest resets: a reboot it was told to do.

        Args:
            deadline: 60 s on a good host by default.
            since: A :meth:`Qmp.mark <harness.qemu.qmp.Qmp.mark>` from before the reboot.
        """
        with self.timeline.step("wait for reset", machine=self.name):
            self._await("the guest to reset", ("RESET",), of(deadline, 60), since=since)

    def _await(self, what: str, names: Sequence[str], limit: Deadline, *, since: int) -> Event:
        try:
            return self.qmp.wait(names, limit, since=since)
        except WaitTimeoutError as error:
            raise WaitTimeoutError(
                what,
                limit.seconds,
                last_output=self.console.last_output(),
                silent=self.console.silent_for(),
                evidence=str(self.evidence / "serial.log"),
            ) from error

    def shutdown(self, deadline: Deadline | float | None = None) -> None:
        """Press the power button (ACPI) and wait for the guest to power off.

        Args:
            deadline: 60 s on a good host by default.
        """
        with self._lock:
            self._stop_expected = True
        with self.timeline.step("shut down by ACPI", machine=self.name):
            mark = self.qmp.mark()
            self.qmp.execute("system_powerdown")
            self._await("the guest to power off", ("SHUTDOWN",), of(deadline, 60), since=mark)
        self.stop()

    def power_cut(self) -> None:
        """Take the power away: QEMU is killed; the disks stay as they are."""
        with self.timeline.step("power cut", machine=self.name):
            self.stop()

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        """Let the guest's CPUs run again."""
        self.qmp.execute("cont")

    def screenshot(self, path: Path | None = None) -> Path:
        """Write what the VGA adapter shows as PNG and return the path.

        Raises:
            UsageError: if the machine has no display; ``console.screen`` is what a serial console shows.
        """
        if not self.spec.display:
            raise UsageError(
                f"machine {self.name} has no display",
                hint="boot it with display=True, or look at console.screen",
            )
        target = path or self.evidence / f"screen-{int(time.time() * 1000)}.png"
        self.qmp.execute("screendump", {"filename": str(target), "format": "png"})
        return target

    @contextlib.contextmanager
    def expecting(self, *kinds: type[GuestError]) -> Iterator[Expected]:
        """Let the block provoke failures of these kinds: the machine's watchers only record them."""
        with self.console.expecting(*kinds) as seen:
            yield seen

    # --- commands -----------------------------------------------------------------------------

    def wait_ready(self, deadline: Deadline | float | None = None) -> Machine:
        """Wait until commands can be run: over SSH, or on the console where there is no SSH.

        Args:
            deadline: From power on; the image's own, or 60 s on a good host, by default.
        """
        limit = self.os.limit("ready", deadline, 60)
        with self.timeline.step("wait until ready", machine=self.name):
            if self.use_console_shell:
                self.os.login(limit)
            else:
                self.ssh.connect(limit)
        return self

    def execute(self, command: str, *, deadline: Deadline | float | None = None) -> CommandResult:
        """Run a command and return its output and status.

        It goes over SSH; on the console where the machine has no SSH, or ``use_console_shell`` is set.
        """
        with self.timeline.step(f"run: {command[:200]}", machine=self.name) as step:
            if self.use_console_shell:
                told = self.console.run(command, deadline=deadline)
                result = CommandResult(told.stdout, told.status)
            else:
                over_ssh: SshResult = self.ssh.run(command, deadline=deadline)
                result = CommandResult(over_ssh.stdout, over_ssh.status)
                if over_ssh.stderr:
                    step.data["stderr"] = over_ssh.stderr[-500:]
            step.data["status"] = result.status
        return result

    def succeed(self, *commands: str, deadline: Deadline | float | None = None) -> str:
        """Run commands that must succeed and return their output.

        Raises:
            CommandError: if one ends with a status other than 0.
        """
        output = ""
        for command in commands:
            result = self.execute(command, deadline=deadline)
            if result.status != 0:
                raise CommandError(
                    f"{command!r} ended with status {result.status} on {self.name}",
                    evidence=self._said(result),
                )
            output += result.output
        return output

    def fail(self, *commands: str, deadline: Deadline | float | None = None) -> str:
        """Run commands that must fail and return their output.

        Raises:
            CommandError: if one succeeds.
        """
        output = ""
        for command in commands:
            result = self.execute(command, deadline=deadline)
            if result.status == 0:
                raise CommandError(
                    f"{command!r} succeeded on {self.name} and must not",
                    evidence=self._said(result),
                )
            output += result.output
        return output

    def _said(self, result: CommandResult) -> str:
        running = self.timeline.steps[-1] if self.timeline.steps else None
        errors = str(running.data.get("stderr", "")) if running is not None else ""
        return (result.output[-1500:] + errors).strip()

    def wait_until_succeeds(self, command: str, deadline: Deadline | float | None = None) -> str:
        """Run a command until it succeeds and return its output.

        A guest has no event for an arbitrary condition, so it is asked again and again: the loop
        runs in the guest, one command for Harness, and waits there between tries.

        Args:
            command: What must succeed.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: at the deadline.
        """
        limit = of(deadline, 60)
        loop = f"until ( {command}\n); do sleep 0.2 2>/dev/null || sleep 1; done"
        with self.timeline.step(f"wait until succeeds: {command[:200]}", machine=self.name):
            try:
                return self.execute(loop, deadline=limit).output
            except WaitTimeoutError as error:
                raise WaitTimeoutError(
                    f"{command!r} to succeed on {self.name}",
                    limit.seconds,
                    last_output=error.last_output,
                    evidence=error.evidence,
                ) from error

    def wait_for_unit(self, unit: str, deadline: Deadline | float | None = None) -> None:
        """Wait until a service is active.

        Raises:
            CommandError: if it fails instead.
            WaitTimeoutError: at the deadline.
        """
        ask = self.os.unit_state(unit)
        state = self.wait_until_succeeds(
            f's=$({ask}); case "$s" in active|failed) echo "$s";; *) false;; esac', deadline
        ).strip()
        if not state.endswith("active"):
            log = self.execute(self.os.as_root(f"journalctl -n 30 --no-pager -u {unit}"))
            raise CommandError(f"unit {unit} failed on {self.name}", evidence=log.output)

    def wait_for_port(self, number: int, deadline: Deadline | float | None = None) -> None:
        """Wait until something in the guest listens on a TCP port."""
        digits = f"{number:04X}"
        self.wait_until_succeeds(
            f"cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -Eq ': [0-9A-F]+:{digits} "
            "[0-9A-F]+:0000 0A '",
            deadline,
        )

    @property
    def boot_id(self) -> str:
        """The guest's boot id, new at each boot (``random(4)``)."""
        return self.succeed("cat /proc/sys/kernel/random/boot_id").strip()

    def reboot(self, deadline: Deadline | float | None = None) -> None:
        """Reboot in order and wait until the machine is ready with a new boot id.

        Args:
            deadline: 120 s on a good host by default.

        Raises:
            WaitTimeoutError: at the deadline.
            GuestError: if the guest does not come back, or with the old boot id.
        """
        limit = of(deadline, 120)
        with self.timeline.step("reboot", machine=self.name):
            before = self.boot_id
            mark = self.qmp.mark()
            command = self.os.request_reboot()
            if self.use_console_shell:
                self.console.leave()
                self.console.send_line(command)
            else:
                # The answer may be cut off by the reboot it asks for.
                with contextlib.suppress(ConnectionLostError):
                    told = self.ssh.run(command, deadline=limit)
                    if told.status > 0:
                        told.check()
            self.wait_for_reset(limit, since=mark)
            if self._ssh is not None:
                self._ssh.disconnect()
                if not self.os.keeps_host_key:
                    self._ssh.forget_host_key()
            self.wait_ready(limit)
            if self.boot_id == before:
                raise CommandError(f"machine {self.name} reset, but its boot id is the old one")


def quote(text: str) -> str:
    """Return ``text`` as one word for the guest's shell."""
    return shlex.quote(text)
